//! PullImage.

use crate::error::CriError;
use crate::image_service::ImageServer;
use cri_api::v1::{AuthConfig, PullImageRequest, PullImageResponse};
use image_store::Credentials;

/// PullImage. Calls for one image with one set of credentials share the work; a
/// call that its caller gives up leaves it to the others, the last one ends it.
pub(crate) async fn pull_image(
    server: &ImageServer,
    request: PullImageRequest,
) -> Result<PullImageResponse, CriError> {
    let name = server.name(request.image)?;
    let credentials = match request.auth {
        Some(auth) => credentials(auth, server.images.registry_of(&name)?.as_deref())?,
        None => None,
    };
    let image = server.images.pull(&name, credentials, |_| {}).await?;
    tracing::info!(image = name, id = %image.id, "image pulled");
    Ok(PullImageResponse {
        image_ref: image.id.to_string(),
    })
}

/// What the registry is shown: nothing, if the credentials are another's.
fn credentials(auth: AuthConfig, registry: Option<&str>) -> Result<Option<Credentials>, CriError> {
    if !auth.server_address.is_empty() && registry.is_some() {
        let host = host(&auth.server_address);
        if host != registry.unwrap_or_default() {
            return Ok(None);
        }
    }
    if !auth.registry_token.is_empty() {
        return Ok(Some(Credentials::RegistryToken(auth.registry_token)));
    }
    if !auth.identity_token.is_empty() {
        return Ok(Some(Credentials::IdentityToken(auth.identity_token)));
    }
    if !auth.username.is_empty() {
        return Ok(Some(Credentials::Basic {
            username: auth.username,
            password: auth.password,
        }));
    }
    if auth.auth.is_empty() {
        return Ok(None);
    }
    let basic = Credentials::from_base64(&auth.auth);
    basic
        .map(Some)
        .ok_or_else(|| CriError::invalid("auth.auth", "must be the base64 of username:password"))
}

/// Host and port of an address with or without scheme and path.
fn host(address: &str) -> &str {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic() -> Option<Credentials> {
        Some(Credentials::Basic {
            username: "user".into(),
            password: "pass".into(),
        })
    }

    #[test]
    fn every_form_of_credentials_is_taken() {
        let get = |auth| credentials(auth, Some("reg.test:5000")).unwrap();
        assert_eq!(get(AuthConfig::default()), None);
        let names = AuthConfig {
            username: "user".into(),
            password: "pass".into(),
            ..AuthConfig::default()
        };
        assert_eq!(get(names.clone()), basic());
        let both = AuthConfig {
            auth: "dXNlcjpwYXNz".into(),
            ..AuthConfig::default()
        };
        assert_eq!(get(both), basic());
        let identity = AuthConfig {
            identity_token: "t".into(),
            ..names.clone()
        };
        assert_eq!(get(identity), Some(Credentials::IdentityToken("t".into())));
        let token = AuthConfig {
            registry_token: "t".into(),
            ..names
        };
        assert_eq!(get(token), Some(Credentials::RegistryToken("t".into())));
    }

    #[test]
    fn credentials_of_another_registry_are_not_shown() {
        let auth = |address: &str| AuthConfig {
            username: "user".into(),
            password: "pass".into(),
            server_address: address.into(),
            ..AuthConfig::default()
        };
        for address in ["reg.test:5000", "https://reg.test:5000/v2/", ""] {
            let found = credentials(auth(address), Some("reg.test:5000")).unwrap();
            assert_eq!(found, basic(), "{address}");
        }
        for address in ["reg.test", "evil.test", "https://reg.test:5000.evil.test"] {
            let found = credentials(auth(address), Some("reg.test:5000")).unwrap();
            assert_eq!(found, None, "{address}");
        }
    }

    #[test]
    fn broken_base64_names_its_field_and_not_its_content() {
        let auth = AuthConfig {
            auth: "secret!".into(),
            ..AuthConfig::default()
        };
        let error = credentials(auth, None).unwrap_err().to_string();
        assert!(
            error.contains("auth.auth") && !error.contains("secret"),
            "{error}"
        );
    }
}
