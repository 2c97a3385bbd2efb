//! Authentication to registries: Basic, and the token service of the
//! distribution specification (with OAuth2 refresh tokens).

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use reqwest::Client;
use serde::Deserialize;

use super::{
    hosts::Host,
    registry::{RegistryError, read_limited},
};

/// Padding may be there or not.
const STANDARD_LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
const MAX_TOKEN_RESPONSE: u64 = 1 << 20;
const CLIENT_ID: &str = "spherule";

/// What a registry is shown, if it asks.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Credentials {
    /// A name and a password.
    Basic {
        /// The name.
        username: String,
        /// The password.
        password: String,
    },
    /// An OAuth2 refresh token, exchanged at the registry's token service.
    IdentityToken(String),
    /// A bearer token, shown as it is.
    RegistryToken(String),
}

impl Credentials {
    /// Name and password from the base64 of `name:password`, as docker's
    /// configuration and the CRI hold them; `None` where it is something else.
    pub fn from_base64(auth: &str) -> Option<Self> {
        // Some writers end the text with a zero byte or a line end.
        let text = auth.trim_end_matches(['\0', '\n', '\r', ' ']);
        let bytes = STANDARD_LENIENT.decode(text).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let (username, password) = text.trim_end_matches('\0').split_once(':')?;
        Some(Self::Basic {
            username: username.to_owned(),
            password: password.to_owned(),
        })
    }
}

/// Without the secrets.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Basic { username, .. } => write!(f, "Basic({username})"),
            Self::IdentityToken(_) => f.write_str("IdentityToken"),
            Self::RegistryToken(_) => f.write_str("RegistryToken"),
        }
    }
}

/// What a registry asks for with status 401.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

#[derive(Deserialize)]
struct TokenResponse {
    token: Option<String>,
    access_token: Option<String>,
}

/// Gets a bearer token from the service that a challenge names.
pub(super) async fn fetch_token(
    client: &Client,
    host: &Host,
    challenge: &Challenge,
    repository: &str,
    credentials: Option<&Credentials>,
) -> Result<String, RegistryError> {
    let denied = || RegistryError::Unauthorized {
        shown: credentials.is_some(),
    };
    let Challenge::Bearer {
        realm,
        service,
        scope,
    } = challenge
    else {
        return Err(denied());
    };
    let registry = &host.base;
    let bad = || RegistryError::Challenge {
        challenge: realm.clone(),
    };
    let realm = registry.join(realm).map_err(|_| bad())?;
    // Never a secret in the clear that the registry itself gets encrypted.
    if realm.scheme() != "https" && (registry.scheme() == "https" || realm.scheme() != "http") {
        return Err(bad());
    }
    let scope = scope
        .clone()
        .unwrap_or_else(|| format!("repository:{repository}:pull"));
    let mut fields = vec![("scope", scope.as_str())];
    fields.extend(service.as_deref().map(|service| ("service", service)));
    // The host's own headers are for no other.
    let is_same_host = realm.origin() == registry.origin();
    let mut request = match credentials {
        Some(Credentials::IdentityToken(token)) => {
            fields.extend([
                ("grant_type", "refresh_token"),
                ("client_id", CLIENT_ID),
                ("refresh_token", token),
            ]);
            client.post(realm).form(&fields)
        }
        Some(Credentials::Basic { username, password }) => client
            .get(realm)
            .query(&fields)
            .basic_auth(username, Some(password)),
        Some(Credentials::RegistryToken(_)) | None => client.get(realm).query(&fields),
    };
    if is_same_host {
        request = request.headers(host.headers.clone());
    }
    let response = request.send().await.map_err(RegistryError::request)?;
    match response.status().as_u16() {
        200 => {}
        401 | 403 => return Err(denied()),
        _ => return Err(RegistryError::status(&response)),
    }
    let (bytes, _) = read_limited(response, MAX_TOKEN_RESPONSE).await?;
    let parsed: TokenResponse = serde_json::from_slice(&bytes).map_err(|_| denied())?;
    parsed.token.or(parsed.access_token).ok_or_else(denied)
}

/// Parses a `WWW-Authenticate` header; `None` for schemes not known here.
pub(super) fn parse_challenge(header: &str) -> Option<Challenge> {
    let header = header.trim();
    let (scheme, mut rest) = header.split_once(' ').unwrap_or((header, ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service, mut scope) = (None, None, None);
    loop {
        rest = rest.trim_start_matches([' ', ',']);
        let Some((key, after)) = rest.split_once('=') else {
            break;
        };
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => unquote(quoted)?,
            None => {
                let end = after.find(',').unwrap_or(after.len());
                (after[..end].trim().to_owned(), &after[end..])
            }
        };
        match key.trim().to_ascii_lowercase().as_str() {
            "realm" => realm = Some(value),
            "service" => service = Some(value),
            "scope" => scope = Some(value),
            _ => {}
        }
        rest = after;
    }
    Some(Challenge::Bearer {
        realm: realm?,
        service,
        scope,
    })
}

/// The text up to the closing quote, and what follows that.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            _ => value.push(char),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn challenges_are_parsed() {
        let text = r#"Bearer realm="https://auth.test/token",service="reg, \"x\"",scope="repository:a/b:pull,push",error=x"#;
        let expected = Challenge::Bearer {
            realm: "https://auth.test/token".into(),
            service: Some("reg, \"x\"".into()),
            scope: Some("repository:a/b:pull,push".into()),
        };
        assert_eq!(parse_challenge(text), Some(expected));
        assert_eq!(parse_challenge("basic realm=\"x\""), Some(Challenge::Basic));
        for text in [
            "",
            "Digest realm=\"x\"",
            "Bearer",
            "Bearer service=\"x\"",
            "Bearer realm=\"x",
        ] {
            assert_eq!(parse_challenge(text), None, "{text}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let credentials = Credentials::Basic {
            username: "u".into(),
            password: "secret".into(),
        };
        assert_eq!(format!("{credentials:?}"), "Basic(u)");
    }

    #[test]
    fn base64_of_name_and_password_is_taken_apart() {
        let expected = Some(Credentials::Basic {
            username: "user".into(),
            password: "pa:ss".into(),
        });
        for text in ["dXNlcjpwYTpzcw==", "dXNlcjpwYTpzcw", "dXNlcjpwYTpzcw==\n"] {
            assert_eq!(Credentials::from_base64(text), expected, "{text}");
        }
        for text in ["", "dXNlcg==", "%%%", "/w=="] {
            assert_eq!(Credentials::from_base64(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn challenge_parser_survives_any_text(text in "(Bearer )?[a-z=\", \\\\]{0,60}") {
            let _ = parse_challenge(&text).is_some();
        }
    }
}
