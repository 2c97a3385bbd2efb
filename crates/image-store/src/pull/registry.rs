//! One address of a registry: requests, authentication, retries.

use std::{error::Error, io, sync::Once, time::Duration};

use reqwest::{Client, Response, StatusCode, Url, header};
use tokio::sync::Mutex;

use super::{
    auth::{Challenge, Credentials, fetch_token, parse_challenge},
    hosts::Host,
};
use crate::Digest;

/// Without a byte for this long a transfer counts as broken.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_REDIRECTS: usize = 10;
/// Tries of each request, the first included, and the wait before the second;
/// each further wait is twice as long.
const ATTEMPTS: u32 = 5;
/// Tries of a connection that is not accepted.
const CONNECT_ATTEMPTS: u32 = 2;
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// The longest wait that a registry may ask for.
const MAX_WAIT: Duration = Duration::from_secs(30);
const MAX_ERROR_BODY: u64 = 16 << 10;
const USER_AGENT: &str = concat!("spherule/", env!("CARGO_PKG_VERSION"));
const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json";

/// Why a registry did not deliver.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No connection, or one that broke.
    #[error("the request failed")]
    Request(#[source] reqwest::Error),
    /// Redirects without end, or from HTTPS to HTTP.
    #[error("the registry redirects in a way that is not followed")]
    Redirect(#[source] reqwest::Error),
    /// The registry does not have it.
    #[error("not found there")]
    NotFound,
    /// The registry wants other credentials, or any.
    #[error(
        "the registry denies access {}, or the image does not exist",
        if *.shown { "with the credentials given" } else { "without credentials" }
    )]
    Unauthorized {
        /// Whether it was shown any.
        shown: bool,
    },
    /// An authentication that cannot be done.
    #[error("the registry asks for an authentication that is not supported: {challenge:?}")]
    Challenge {
        /// What it sent.
        challenge: String,
    },
    /// Any other answer.
    #[error("the registry answered {status}{message}")]
    Status {
        /// The HTTP status.
        status: u16,
        /// What the body says, after a colon; or nothing.
        message: String,
        /// The wait it asks for.
        retry_after: Option<Duration>,
    },
    /// More than was announced or is allowed.
    #[error("the registry sent more than the {limit} bytes expected at most")]
    TooLong {
        /// The limit.
        limit: u64,
    },
    /// Less than was announced.
    #[error("the registry sent {found} of {expected} bytes")]
    TooShort {
        /// What came.
        found: u64,
        /// What should have come.
        expected: u64,
    },
    /// Another content than asked for.
    #[error("the registry sent content with the digest {found}, asked for was {expected}")]
    Digest {
        /// What came.
        found: Digest,
        /// What was asked for.
        expected: Digest,
    },
}

impl RegistryError {
    pub(super) fn request(error: reqwest::Error) -> Self {
        // The URL may hold a signature that is a secret.
        let error = error.without_url();
        if error.is_redirect() {
            Self::Redirect(error)
        } else {
            Self::Request(error)
        }
    }

    pub(super) fn status(response: &Response) -> Self {
        let retry_after = response
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.trim().parse().ok())
            .map(Duration::from_secs);
        Self::Status {
            status: response.status().as_u16(),
            message: String::new(),
            retry_after,
        }
    }

    /// How often the same request is worth a try.
    fn attempts(&self) -> u32 {
        match self {
            Self::Request(error) if error.is_builder() || is_tls(error) => 1,
            // Nobody is there; another host may be.
            Self::Request(error) if error.is_connect() => CONNECT_ATTEMPTS,
            Self::Request(_) | Self::TooShort { .. } => ATTEMPTS,
            Self::Status {
                status: 408 | 429 | 500 | 502 | 503 | 504,
                ..
            } => ATTEMPTS,
            _ => 1,
        }
    }

    /// How long to wait before try number `attempt` (the first is 0); `None`
    /// if there is no use in another one.
    pub(super) fn wait_before(&self, attempt: u32) -> Option<Duration> {
        if attempt >= self.attempts() {
            return None;
        }
        let wait = FIRST_WAIT * 2_u32.pow(attempt.saturating_sub(1));
        let asked = match self {
            Self::Status { retry_after, .. } => retry_after.unwrap_or_default(),
            _ => Duration::ZERO,
        };
        Some(wait.max(asked).min(MAX_WAIT))
    }
}

/// Whether the two do not agree on TLS: a certificate that is not believed, say.
fn is_tls(error: &reqwest::Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        let io = error.downcast_ref::<io::Error>();
        // The kind that rustls' errors come as, which themselves may be lost.
        if io.is_some_and(|io| io.kind() == io::ErrorKind::InvalidData) {
            return true;
        }
        cause = error.source();
    }
    false
}

enum Authorization {
    Basic { username: String, password: String },
    Bearer(String),
}

/// One repository at one address.
pub(super) struct Endpoint {
    pub(super) host: Host,
    client: Client,
    /// The registry by its name in the reference, which mirrors are told.
    registry: String,
    repository: String,
    credentials: Option<Credentials>,
    authorization: Mutex<Option<Authorization>>,
}

impl Endpoint {
    pub(super) fn new(
        host: Host,
        registry: &str,
        repository: &str,
        credentials: Option<Credentials>,
    ) -> Result<Self, RegistryError> {
        static PROVIDER: Once = Once::new();
        // An error means that the process has one already, which does as well.
        PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
        let redirects = reqwest::redirect::Policy::custom(|attempt| {
            let from_https = attempt
                .previous()
                .last()
                .is_some_and(|url| url.scheme() == "https");
            if attempt.previous().len() > MAX_REDIRECTS {
                attempt.error("too many redirects")
            } else if from_https && attempt.url().scheme() != "https" {
                attempt.error("a redirect from https to another scheme")
            } else {
                attempt.follow()
            }
        });
        let mut builder = Client::builder()
            .user_agent(USER_AGENT)
            .connect_timeout(host.dial_timeout)
            .read_timeout(READ_TIMEOUT)
            .redirect(redirects)
            .tls_certs_merge(host.certificates.iter().cloned())
            .tls_danger_accept_invalid_certs(host.skip_verify);
        if let Some(identity) = &host.identity {
            builder = builder.identity(identity.clone());
        }
        let client = builder.build().map_err(RegistryError::Request)?;
        let authorization = match &credentials {
            Some(Credentials::RegistryToken(token)) => Some(Authorization::Bearer(token.clone())),
            _ => None,
        };
        Ok(Self {
            host,
            client,
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            credentials,
            authorization: Mutex::new(authorization),
        })
    }

    /// A manifest or index by tag or digest, and the media type it came with.
    pub(super) async fn manifest(
        &self,
        tag_or_digest: &str,
        limit: u64,
    ) -> Result<(Vec<u8>, Option<String>), RegistryError> {
        self.fetch(
            &format!("manifests/{tag_or_digest}"),
            Some(MANIFEST_TYPES),
            limit,
        )
        .await
    }

    /// A small blob as a whole.
    pub(super) async fn document(
        &self,
        digest: Digest,
        limit: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        Ok(self.fetch(&format!("blobs/{digest}"), None, limit).await?.0)
    }

    /// A blob's content from byte `from` on; see whether the status says that
    /// it is from there. No retries.
    pub(super) async fn blob(&self, digest: Digest, from: u64) -> Result<Response, RegistryError> {
        self.get(&format!("blobs/{digest}"), None, from).await
    }

    /// A whole body, after as many tries as it takes.
    async fn fetch(
        &self,
        path: &str,
        accept: Option<&str>,
        limit: u64,
    ) -> Result<(Vec<u8>, Option<String>), RegistryError> {
        let mut attempt = 0;
        loop {
            let result = match self.get(path, accept, 0).await {
                Ok(response) => read_limited(response, limit).await,
                Err(error) => Err(error),
            };
            let error = match result {
                Ok(found) => return Ok(found),
                Err(error) => error,
            };
            attempt += 1;
            let Some(wait) = error.wait_before(attempt) else {
                return Err(error);
            };
            tracing::debug!(host = %self.host.base, %error, attempt, "trying again");
            tokio::time::sleep(wait).await;
        }
    }

    /// One GET, authenticated as the registry asks.
    async fn get(
        &self,
        path: &str,
        accept: Option<&str>,
        from: u64,
    ) -> Result<Response, RegistryError> {
        let mut response = self.send(path, accept, from).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            self.authenticate(&response).await?;
            response = self.send(path, accept, from).await?;
        }
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
            StatusCode::NOT_FOUND => Err(RegistryError::NotFound),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(self.denied()),
            _ => Err(status_with_message(response).await),
        }
    }

    async fn send(
        &self,
        path: &str,
        accept: Option<&str>,
        from: u64,
    ) -> Result<Response, RegistryError> {
        let mut request = self.client.get(self.url(path)?);
        request = request.headers(self.host.headers.clone());
        if !self.host.is_server {
            request = request.query(&[("ns", &self.registry)]);
        }
        if let Some(accept) = accept {
            request = request.header(header::ACCEPT, accept);
        }
        if from > 0 {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        request = match &*self.authorization.lock().await {
            Some(Authorization::Basic { username, password }) => {
                request.basic_auth(username, Some(password))
            }
            Some(Authorization::Bearer(token)) => request.bearer_auth(token),
            None => request,
        };
        request.send().await.map_err(RegistryError::request)
    }

    fn denied(&self) -> RegistryError {
        let shown = self.credentials.is_some();
        RegistryError::Unauthorized { shown }
    }

    fn url(&self, path: &str) -> Result<Url, RegistryError> {
        let relative = format!("{}/{path}", self.repository);
        let bad = || RegistryError::Challenge {
            challenge: relative.clone(),
        };
        // "./": a digest's colon would make it look like a scheme.
        self.host
            .base
            .join(&format!("./{relative}"))
            .map_err(|_| bad())
    }

    async fn authenticate(&self, response: &Response) -> Result<(), RegistryError> {
        let texts: Vec<_> = response
            .headers()
            .get_all(header::WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .collect();
        let challenge = texts.iter().find_map(|text| parse_challenge(text));
        let challenge = challenge.ok_or_else(|| RegistryError::Challenge {
            challenge: texts.join("; "),
        })?;
        let authorization = match (&challenge, &self.credentials) {
            (Challenge::Basic, Some(Credentials::Basic { username, password })) => {
                Authorization::Basic {
                    username: username.clone(),
                    password: password.clone(),
                }
            }
            (Challenge::Basic, _) | (_, Some(Credentials::RegistryToken(_))) => {
                return Err(self.denied());
            }
            (Challenge::Bearer { .. }, credentials) => {
                let token = fetch_token(
                    &self.client,
                    &self.host,
                    &challenge,
                    &self.repository,
                    credentials.as_ref(),
                );
                Authorization::Bearer(token.await?)
            }
        };
        *self.authorization.lock().await = Some(authorization);
        Ok(())
    }
}

/// A whole body of at most `limit` bytes, and its media type.
pub(super) async fn read_limited(
    mut response: Response,
    limit: u64,
) -> Result<(Vec<u8>, Option<String>), RegistryError> {
    let media_type = response
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|value| Some(value.to_str().ok()?.split(';').next()?.trim().to_owned()));
    let mut bytes = Vec::new();
    while let Some(part) = response.chunk().await.map_err(RegistryError::request)? {
        if bytes.len() as u64 + part.len() as u64 > limit {
            return Err(RegistryError::TooLong { limit });
        }
        bytes.extend_from_slice(&part);
    }
    Ok((bytes, media_type))
}

/// The error of an answer, with what its body says about it.
async fn status_with_message(response: Response) -> RegistryError {
    let mut error = RegistryError::status(&response);
    let body = read_limited(response, MAX_ERROR_BODY).await;
    let parsed = body
        .ok()
        .and_then(|(body, _)| serde_json::from_slice(&body).ok());
    let found = parsed
        .as_ref()
        .and_then(|body: &serde_json::Value| body.pointer("/errors/0/message")?.as_str());
    if let (RegistryError::Status { message, .. }, Some(found)) = (&mut error, found) {
        let shown: String = found
            .chars()
            .filter(|c| !c.is_control())
            .take(300)
            .collect();
        *message = format!(": {shown}");
    }
    error
}
