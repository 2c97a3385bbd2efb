//! What this server keeps of its requests, beside what the sandbox crate
//! records: kept in the `caller_data` of specifications, as JSON.
//!
//! | field | meaning |
//! |-------|---------|
//! | `cri` | version of this layout: 1 |
//! | `config` | the request's configuration, protobuf bytes in base64 |
//! | `handler` | sandboxes: the runtime handler as it was asked for |
//! | `image`, `image_ref` | containers: what the image is called |

use crate::error::CriError;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cri_api::v1::{ContainerConfig, PodSandboxConfig};
use prost::Message;
use sandbox::{Container, Sandbox};
use serde::{Deserialize, Serialize};

const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Kept {
    cri: u32,
    config: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    handler: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    image: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    image_ref: String,
}

impl Kept {
    fn new(config: &impl Message) -> Self {
        Self {
            cri: VERSION,
            config: STANDARD.encode(config.encode_to_vec()),
            handler: String::new(),
            image: String::new(),
            image_ref: String::new(),
        }
    }

    fn text(&self) -> String {
        // Texts and numbers only: cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// `None`: not made by this server.
    fn parse(text: &str) -> Option<Self> {
        let kept: Self = serde_json::from_str(text).ok()?;
        (kept.cri == VERSION).then_some(kept)
    }

    fn config<M: Message + Default>(&self, id: &str) -> Result<M, CriError> {
        let bytes = STANDARD.decode(&self.config).ok();
        let config = bytes.and_then(|bytes| M::decode(bytes.as_slice()).ok());
        config.ok_or_else(|| CriError::Record { id: id.to_owned() })
    }
}

/// The `caller_data` of a sandbox.
pub(crate) fn keep_sandbox(config: &PodSandboxConfig, handler: &str) -> String {
    let mut kept = Kept::new(config);
    handler.clone_into(&mut kept.handler);
    kept.text()
}

/// The `caller_data` of a container, whose image is called `image` by people and
/// `image_ref` by digest.
pub(crate) fn keep_container(config: &ContainerConfig, image: &str, image_ref: &str) -> String {
    let mut kept = Kept::new(config);
    image.clone_into(&mut kept.image);
    image_ref.clone_into(&mut kept.image_ref);
    kept.text()
}

/// A sandbox that was made through this server.
#[derive(Debug, Clone)]
pub(crate) struct CriSandbox {
    pub(crate) sandbox: Sandbox,
    /// As it was asked for.
    pub(crate) config: PodSandboxConfig,
    /// As it was asked for.
    pub(crate) handler: String,
}

impl CriSandbox {
    /// `None`: another's.
    pub(crate) fn new(sandbox: Sandbox) -> Option<Result<Self, CriError>> {
        let kept = Kept::parse(&sandbox.spec.caller_data)?;
        Some(kept.config(&sandbox.spec.id).map(|config| Self {
            sandbox,
            config,
            handler: kept.handler,
        }))
    }

    pub(crate) fn id(&self) -> &str {
        &self.sandbox.spec.id
    }
}

/// A container that was made through this server.
#[derive(Debug, Clone)]
pub(crate) struct CriContainer {
    pub(crate) container: Container,
    /// As it was asked for.
    pub(crate) config: ContainerConfig,
    /// What people call its image.
    pub(crate) image: String,
    /// Its image by digest.
    pub(crate) image_ref: String,
}

impl CriContainer {
    /// `None`: another's.
    pub(crate) fn new(container: Container) -> Option<Result<Self, CriError>> {
        let kept = Kept::parse(&container.spec.caller_data)?;
        Some(kept.config(&container.id).map(|config| Self {
            container,
            config,
            image: kept.image,
            image_ref: kept.image_ref,
        }))
    }

    pub(crate) fn id(&self) -> &str {
        &self.container.id
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn configuration_comes_back_as_it_was() {
        let config = PodSandboxConfig {
            hostname: "web".into(),
            annotations: [("k".to_owned(), "ü\n".to_owned())].into(),
            ..PodSandboxConfig::default()
        };
        let kept = Kept::parse(&keep_sandbox(&config, "spherule")).unwrap();
        assert_eq!(kept.handler, "spherule");
        assert_eq!(kept.config::<PodSandboxConfig>("x").unwrap(), config);
    }

    #[test]
    fn damaged_configuration_is_an_error_that_names_its_owner() {
        let kept = Kept::parse(r#"{"cri":1,"config":"!"}"#).unwrap();
        let error = kept.config::<PodSandboxConfig>("abc").unwrap_err();
        assert!(error.to_string().contains("abc"), "{error}");
    }

    proptest! {
        #[test]
        fn what_others_keep_is_not_ours(text in "\\PC*") {
            prop_assert!(Kept::parse(&text).is_none());
        }
    }
}
