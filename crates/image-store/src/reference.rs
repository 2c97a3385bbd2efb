//! Image names: `[HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]`.

use std::{fmt, str::FromStr};

use crate::{Config, Digest};

const MAX_NAME_LEN: usize = 255;
const MAX_TAG_LEN: usize = 128;
const DEFAULT_TAG: &str = "latest";

/// Why a text is no image name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// The part before tag and digest breaks the rules.
    #[error(
        "{text:?} is not an image name: the repository is made of lower-case letters, digits, \
         single separators (., _, __, -) and slashes"
    )]
    Repository {
        /// The whole text.
        text: String,
    },
    /// The host part breaks the rules.
    #[error("{text:?} is not an image name: {host:?} is no host name with optional port")]
    Host {
        /// The whole text.
        text: String,
        /// The host part.
        host: String,
    },
    /// The tag breaks the rules.
    #[error(
        "{text:?} is not an image name: the tag {tag:?} must be up to 128 letters, digits, \
         _, . and -, and begin with none of the last two"
    )]
    Tag {
        /// The whole text.
        text: String,
        /// The tag.
        tag: String,
    },
    /// The digest is none.
    #[error("{text:?} is not an image name")]
    Digest {
        /// The whole text.
        text: String,
        /// The reason.
        #[source]
        source: crate::digest::DigestError,
    },
}

/// A parsed image name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    /// The registry's host and port, if the name has one.
    pub registry: Option<String>,
    /// The path within the registry.
    pub repository: String,
    /// The tag; never `None` where the digest is.
    pub tag: Option<String>,
    /// The manifest's digest.
    pub digest: Option<Digest>,
}

impl Reference {
    /// The name with what the configuration adds to a name without a host: the
    /// default registry, and the default namespace for one-part names.
    #[must_use]
    pub fn normalized(&self, config: &Config) -> Self {
        let mut full = self.clone();
        if let (None, Some(registry)) = (&self.registry, &config.default_registry) {
            full.registry = Some(registry.clone());
            if let (false, Some(namespace)) =
                (self.repository.contains('/'), &config.default_namespace)
            {
                full.repository = format!("{namespace}/{}", self.repository);
            }
        }
        full
    }

    /// Host and repository, without tag and digest.
    pub fn name(&self) -> String {
        match &self.registry {
            Some(registry) => format!("{registry}/{}", self.repository),
            None => self.repository.clone(),
        }
    }

    /// The name with its tag (or `latest`), without digest.
    pub(crate) fn tagged(&self) -> String {
        format!(
            "{}:{}",
            self.name(),
            self.tag.as_deref().unwrap_or(DEFAULT_TAG)
        )
    }

    /// What the name is found by: its digest, or else its tag.
    pub(crate) fn key(&self) -> String {
        match &self.digest {
            Some(digest) => self.pinned(digest),
            None => self.tagged(),
        }
    }

    /// The name with that digest, without tag.
    pub(crate) fn pinned(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.name())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let text_owned = || text.chars().take(300).collect::<String>();
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest.parse().map_err(|source| ReferenceError::Digest {
                    text: text_owned(),
                    source,
                })?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        let (registry, rest) = match rest.split_once('/') {
            Some((first, rest)) if is_host_like(first) => {
                if !is_host(first) {
                    let host = first.chars().take(300).collect();
                    return Err(ReferenceError::Host {
                        text: text_owned(),
                        host,
                    });
                }
                (Some(first.to_owned()), rest)
            }
            _ => (None, rest),
        };
        let (repository, tag) = match rest.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (rest, None),
        };
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            let tag = tag.chars().take(300).collect();
            return Err(ReferenceError::Tag {
                text: text_owned(),
                tag,
            });
        }
        if !is_repository(repository)
            || rest.len() + registry.as_ref().map_or(0, String::len) > MAX_NAME_LEN + MAX_TAG_LEN
        {
            return Err(ReferenceError::Repository { text: text_owned() });
        }
        let tag = match (tag, &digest) {
            (None, None) => Some(DEFAULT_TAG.to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Self {
            registry,
            repository: repository.to_owned(),
            tag,
            digest,
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Whether the first part of a name is meant as a host: one with a dot, a port,
/// or the one host name that has neither.
fn is_host_like(part: &str) -> bool {
    part.contains(['.', ':', '[']) || part == "localhost"
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((host, port)) => {
                let is_v6 = host.parse::<std::net::Ipv6Addr>().is_ok();
                return is_v6 && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
            }
            None => return false,
        },
        None => text
            .split_once(':')
            .map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let is_label = |label: &str| {
        let bytes = label.as_bytes();
        !bytes.is_empty()
            && bytes
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.len() <= 253 && host.split('.').all(is_label) && port.is_none_or(is_port)
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

fn is_tag(tag: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= MAX_TAG_LEN
        && tag.bytes().next().is_some_and(is_word)
        && tag
            .bytes()
            .all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'))
}

fn is_repository(text: &str) -> bool {
    text.len() <= MAX_NAME_LEN && text.split('/').all(is_path_component)
}

/// Letters and digits, with separators only between them: one dot, one or two
/// underscores, any number of dashes.
fn is_path_component(text: &str) -> bool {
    let is_alnum = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let inner = bytes.first().is_some_and(is_alnum) && bytes.last().is_some_and(is_alnum);
    inner
        && bytes
            .split(is_alnum)
            .filter(|separator| !separator.is_empty())
            .all(|separator| {
                matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
            })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Reference {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn names_are_taken_apart() {
        let plain = parse("busybox");
        assert_eq!(
            (plain.registry, plain.tag.as_deref()),
            (None, Some("latest"))
        );
        let full = parse("127.0.0.1:5000/a/b__c:v1.2-x");
        assert_eq!(full.registry.as_deref(), Some("127.0.0.1:5000"));
        assert_eq!(
            (full.repository.as_str(), full.tag.as_deref()),
            ("a/b__c", Some("v1.2-x"))
        );
        let pinned = parse(&format!("[::1]:5000/a@sha256:{HEX}"));
        assert_eq!(pinned.registry.as_deref(), Some("[::1]:5000"));
        assert_eq!((pinned.tag, pinned.digest), (None, Some(Digest::of(b""))));
        assert_eq!(parse("localhost/a").registry.as_deref(), Some("localhost"));
        assert_eq!(parse("team/app").registry, None);
    }

    #[test]
    fn names_that_break_the_rules_are_refused() {
        for text in [
            "",
            "/",
            "a/",
            "/a",
            "A",
            "a//b",
            "a..b",
            "a___b",
            "-a",
            "a-",
            "a:",
            "a:.x",
            "a:b:c",
            "a@",
            "a@sha256:12",
            "x.y:99999/a",
            "x.y:/a/../b",
            "a/../b",
            "ex.ample:80a/b",
            "a b",
            "-x.y/a",
            "[::g]/a",
            "[::1/a",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
        assert!(
            format!("a:{}", "t".repeat(129))
                .parse::<Reference>()
                .is_err()
        );
        assert!("a".repeat(256).parse::<Reference>().is_err());
    }

    #[test]
    fn configuration_completes_names_without_host() {
        let none = Config::default();
        assert_eq!(parse("app").normalized(&none).to_string(), "app:latest");
        let some = Config {
            default_registry: Some("registry.test:5000".into()),
            default_namespace: Some("library".into()),
            ..Config::default()
        };
        let full = |text: &str| parse(text).normalized(&some).to_string();
        assert_eq!(full("app"), "registry.test:5000/library/app:latest");
        assert_eq!(full("team/app:1"), "registry.test:5000/team/app:1");
        assert_eq!(full("other.test/app"), "other.test/app:latest");
    }

    proptest! {
        #[test]
        fn parse_survives_any_text(text in ".{0,100}") {
            let _ = text.parse::<Reference>().is_ok();
        }

        #[test]
        fn shown_names_parse_to_themselves(
            text in "([a-z]{1,5}\\.test(:[1-9][0-9]{1,3})?/)?[a-z0-9]{1,5}(/[a-z0-9]([._-][a-z0-9]){0,3}){0,2}(:[a-z0-9_][a-z0-9._-]{0,10})?"
        ) {
            let reference: Reference = text.parse().unwrap();
            prop_assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
        }
    }
}
