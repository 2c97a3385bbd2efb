//! Registry credentials without their secrets, so that a request can be traced.

use crate::v1::AuthConfig;
use std::fmt;

impl fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthConfig")
            .field("username", &self.username)
            .field("password", &Redacted(&self.password))
            .field("auth", &Redacted(&self.auth))
            .field("server_address", &self.server_address)
            .field("identity_token", &Redacted(&self.identity_token))
            .field("registry_token", &Redacted(&self.registry_token))
            .finish()
    }
}

/// Says whether a secret is there, not what it is.
struct Redacted<'a>(&'a str);

impl fmt::Debug for Redacted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() {
            "none"
        } else {
            "redacted"
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::v1::{AuthConfig, PullImageRequest};

    #[test]
    fn debug_of_a_pull_shows_the_user_and_no_secret() {
        let request = PullImageRequest {
            auth: Some(AuthConfig {
                username: "ann".into(),
                password: "secret-1".into(),
                auth: "secret-2".into(),
                server_address: "registry.example".into(),
                identity_token: "secret-3".into(),
                registry_token: String::new(),
            }),
            ..Default::default()
        };
        let text = format!("{request:?} {request:#?}");
        assert!(text.contains("ann") && text.contains("registry.example"));
        assert!(!text.contains("secret"), "{text}");
        assert!(text.contains("registry_token: none"), "{text}");
    }
}
