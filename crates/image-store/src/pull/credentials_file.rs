//! Credentials in the format of docker's `config.json`:
//!
//! ```json
//! {"auths": {"registry.test:5000": {"auth": "dXNlcjpwYXNz"},
//!            "registry.test/team": {"identitytoken": "..."}}}
//! ```
//!
//! A key is a registry, with a path if it is for repositories below that only; an
//! URL's scheme and version are ignored. Programs that hold credentials
//! (`credsStore`, `credHelpers`) are not run.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::auth::Credentials;

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsFileError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// It is not the JSON it should be. The text is not shown: it holds secrets.
    #[error("{} is not valid at line {line}, column {column}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
    /// An entry holds nothing that can be used.
    #[error(
        "{}: the entry {key:?} has neither username and password, nor the base64 of both, nor a token",
        path.display()
    )]
    Entry {
        /// The file.
        path: PathBuf,
        /// The registry.
        key: String,
    },
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

/// What the file says.
#[derive(Debug, Default)]
pub(super) struct CredentialsFile(BTreeMap<String, Credentials>);

impl CredentialsFile {
    /// Reads it, if there is to be one.
    pub(super) fn load(path: Option<&Path>) -> Result<Self, CredentialsFileError> {
        let Some(path) = path else {
            return Ok(Self::default());
        };
        let text = fs::read(path).map_err(|source| CredentialsFileError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, path)
    }

    fn parse(text: &[u8], path: &Path) -> Result<Self, CredentialsFileError> {
        let file: File =
            serde_json::from_slice(text).map_err(|error| CredentialsFileError::Parse {
                path: path.to_owned(),
                line: error.line(),
                column: error.column(),
            })?;
        let mut found = BTreeMap::new();
        for (key, entry) in file.auths {
            // What docker leaves where a helper has the credentials.
            if entry.is_empty() {
                continue;
            }
            let credentials = entry.credentials();
            let credentials = credentials.ok_or_else(|| CredentialsFileError::Entry {
                path: path.to_owned(),
                key: key.clone(),
            })?;
            found.insert(place(&key), credentials);
        }
        Ok(Self(found))
    }

    /// Those for a repository: of the longest key that fits.
    pub(super) fn find(&self, registry: &str, repository: &str) -> Option<Credentials> {
        let mut key = format!("{}/{repository}", place(registry));
        loop {
            if let Some(found) = self.0.get(&key) {
                return Some(found.clone());
            }
            key.truncate(key.rfind('/')?);
        }
    }
}

impl Entry {
    fn is_empty(&self) -> bool {
        [
            &self.auth,
            &self.username,
            &self.password,
            &self.identitytoken,
            &self.registrytoken,
        ]
        .iter()
        .all(|field| field.is_empty())
    }

    fn credentials(self) -> Option<Credentials> {
        if !self.registrytoken.is_empty() {
            Some(Credentials::RegistryToken(self.registrytoken))
        } else if !self.identitytoken.is_empty() {
            Some(Credentials::IdentityToken(self.identitytoken))
        } else if !self.username.is_empty() {
            Some(Credentials::Basic {
                username: self.username,
                password: self.password,
            })
        } else {
            Credentials::from_base64(&self.auth)
        }
    }
}

/// A key without what an URL has around host and path.
fn place(key: &str) -> String {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    let rest = rest.trim_end_matches('/');
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    match path {
        "" | "v1" | "v2" => host.to_owned(),
        path => format!("{host}/{path}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<CredentialsFile, CredentialsFileError> {
        CredentialsFile::parse(text.as_bytes(), Path::new("config.json"))
    }

    fn basic(username: &str) -> Option<Credentials> {
        Some(Credentials::Basic {
            username: username.into(),
            password: "pass".into(),
        })
    }

    #[test]
    fn longest_key_that_fits_is_taken() {
        let file = parse(
            r#"{"auths": {
                "https://reg.test:5000/v2/": {"auth": "dXNlcjpwYXNz"},
                "reg.test:5000/team": {"username": "team", "password": "pass"},
                "token.test": {"identitytoken": "t"},
                "helper.test": {}
            }, "credsStore": "x"}"#,
        )
        .unwrap();
        assert_eq!(file.find("reg.test:5000", "app"), basic("user"));
        assert_eq!(file.find("reg.test:5000", "team/app"), basic("team"));
        assert_eq!(file.find("reg.test:5000", "teams/app"), basic("user"));
        let token = Credentials::IdentityToken("t".into());
        assert_eq!(file.find("token.test", "a"), Some(token));
        for registry in ["reg.test", "helper.test", "est:5000"] {
            assert_eq!(file.find(registry, "app"), None, "{registry}");
        }
    }

    #[test]
    fn faults_are_named_without_secrets() {
        let text = parse("{\"auths\": {\"a\": {\"auth\": \"secret").unwrap_err();
        assert!(text.to_string().contains("line 1"), "{text}");
        assert!(!text.to_string().contains("secret"), "{text}");
        let text = parse(r#"{"auths": {"a.test": {"auth": "c2VjcmV0"}}}"#).unwrap_err();
        assert!(text.to_string().contains("a.test"), "{text}");
    }

    proptest! {
        #[test]
        fn parser_and_search_survive_any_text(text in "[{}\"a-z:/,. ]{0,60}", name in ".{0,20}") {
            if let Ok(file) = parse(&text) {
                let _ = file.find(&name, &name);
            }
        }
    }
}
