//! Volumes that an image's configuration asks for.

use crate::error::SandboxError;
use crate::spec::MountSpec;
use std::collections::BTreeSet;

/// Most volumes of an image.
const MAX_VOLUMES: usize = 256;

/// The paths in `wanted` as absolute ones, each once, less those where `mounts`
/// put something else.
pub(super) fn image_volumes(
    image: &str,
    wanted: &[String],
    mounts: &[MountSpec],
) -> Result<Vec<String>, SandboxError> {
    let refuse = |message: &str| SandboxError::Invalid {
        field: "image",
        message: format!("{image}: {message}"),
    };
    if wanted.len() > MAX_VOLUMES {
        return Err(refuse("it declares more than 256 volumes"));
    }
    let paths: BTreeSet<String> = wanted.iter().map(|path| clean(path)).collect();
    if paths.contains("/") {
        return Err(refuse("it declares its own root as a volume"));
    }
    let taken = |path: &String| mounts.iter().any(|m| clean(&m.destination) == *path);
    Ok(paths.into_iter().filter(|path| !taken(path)).collect())
}

/// An absolute path without ".", ".." and empty parts.
fn clean(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::MountSource;

    fn volumes(wanted: &[&str], mounted: &str) -> Result<Vec<String>, SandboxError> {
        let wanted: Vec<_> = wanted.iter().map(ToString::to_string).collect();
        let mount = MountSpec {
            source: MountSource::Volume("v".into()),
            sub_path: String::new(),
            destination: mounted.to_owned(),
            read_only: false,
        };
        image_volumes("i", &wanted, &[mount])
    }

    #[test]
    fn paths_are_absolute_once_and_not_where_something_is_mounted() {
        let found = volumes(
            &["data", "/data/", "/a/./b", "/mnt//c", "/x/../y"],
            "/mnt/c/",
        );
        assert_eq!(found.unwrap(), ["/a/b", "/data", "/y"]);
    }

    #[test]
    fn root_and_too_many_are_refused_with_the_images_name() {
        for wanted in [vec!["/"], vec![".."], vec!["/x"; 257]] {
            let error = volumes(&wanted, "/m").unwrap_err().to_string();
            assert!(error.starts_with("image: i: it declares"), "{error}");
        }
    }
}
