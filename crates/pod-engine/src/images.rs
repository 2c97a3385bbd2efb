//! Images as a pod's containers need them: found or pulled by imagePullPolicy,
//! with the kubelet's reasons where that fails.

use crate::error::chain;
use crate::manifest::ImagePullPolicy;
use crate::merge::ImageDefaults;
use image_store::{Image, ImageError, ImageStore};

/// An image that is here.
#[derive(Debug, Clone)]
pub(crate) struct Resolved {
    /// Digest of its configuration.
    pub(crate) id: String,
    pub(crate) defaults: ImageDefaults,
    pub(crate) stop_signal: u32,
}

/// Why an image cannot be had now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Missing {
    /// The kubelet's word for it.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// The policy of a container that names none: Always for what may move under
/// its name, as the API server's default.
pub(crate) fn policy(asked: Option<ImagePullPolicy>, image: &str) -> ImagePullPolicy {
    asked.unwrap_or_else(|| {
        let name = image.rsplit('/').next().unwrap_or(image);
        match name.split_once(':') {
            _ if image.contains('@') => ImagePullPolicy::IfNotPresent,
            None | Some((_, "latest")) => ImagePullPolicy::Always,
            Some(_) => ImagePullPolicy::IfNotPresent,
        }
    })
}

/// Finds or pulls an image, and keeps it from being collected while the pod `owner`
/// is not over ([`release`]): its containers may want it any time.
pub(crate) async fn resolve(
    store: &ImageStore,
    image: &str,
    policy: ImagePullPolicy,
    owner: &str,
) -> Result<Resolved, Missing> {
    let found = find_or_pull(store, image, policy).await?;
    let (id, owner) = (found.id, owner.to_owned());
    blocking(store, image, move |store| store.lease(&id, &owner)).await?;
    Ok(resolved(found))
}

/// Ends what [`resolve`] has kept for a pod.
pub(crate) async fn release(store: &ImageStore, owner: &str) -> Result<(), Missing> {
    let pod = owner.to_owned();
    blocking(store, owner, move |store| store.release(&pod)).await
}

async fn find_or_pull(
    store: &ImageStore,
    image: &str,
    policy: ImagePullPolicy,
) -> Result<Image, Missing> {
    if policy != ImagePullPolicy::Always
        && let Some(found) = find(store, image).await?
    {
        return Ok(found);
    }
    if policy == ImagePullPolicy::Never {
        return Err(Missing {
            reason: "ErrImageNeverPull",
            message: format!(
                "image {image} is not here and imagePullPolicy is Never; import it (`spherule import`) or pull it"
            ),
        });
    }
    let pulled = store.pull(image, None, |_| ()).await;
    pulled.map_err(|error| missing(image, &error))
}

/// The image, if it is here.
async fn find(store: &ImageStore, image: &str) -> Result<Option<Image>, Missing> {
    let name = image.to_owned();
    blocking(store, image, move |store| store.get(&name)).await
}

/// The store's calls block.
async fn blocking<T: Send + 'static>(
    store: &ImageStore,
    image: &str,
    work: impl FnOnce(&ImageStore) -> Result<T, ImageError> + Send + 'static,
) -> Result<T, Missing> {
    let store = store.clone();
    match tokio::task::spawn_blocking(move || work(&store)).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(missing(image, &error)),
        Err(error) => Err(Missing {
            reason: "ErrImagePull",
            message: chain(&error),
        }),
    }
}

fn missing(image: &str, error: &ImageError) -> Missing {
    let reason = match error {
        ImageError::Reference(_) => "InvalidImageName",
        _ => "ErrImagePull",
    };
    Missing {
        reason,
        message: format!("image {image}: {}", chain(error)),
    }
}

fn resolved(image: Image) -> Resolved {
    let config = image.config;
    Resolved {
        id: image.id.to_string(),
        stop_signal: config
            .stop_signal
            .as_deref()
            .and_then(sandbox::signal_number)
            .unwrap_or(0),
        defaults: ImageDefaults {
            entrypoint: config.entrypoint,
            cmd: config.cmd,
            env: config.env,
            working_dir: config.working_dir,
            user: config.user,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_policy_goes_by_the_tag() {
        use ImagePullPolicy::{Always, IfNotPresent, Never};
        for (image, want) in [
            ("busybox", Always),
            ("busybox:latest", Always),
            ("host:5000/busybox", Always),
            ("host:5000/busybox:1.36", IfNotPresent),
            ("busybox@sha256:0", IfNotPresent),
        ] {
            assert_eq!(policy(None, image), want, "{image}");
        }
        assert_eq!(policy(Some(Never), "busybox"), Never);
    }
}
