//! A token service as registries have one beside them (`auth: token` of
//! docker-registry): signed JSON Web Tokens (RFC 7519, ES256 of RFC 7518) that
//! say which repositories may be pulled, to those whom it knows.

use crate::guarded::{PASSWORD, USER, certificates};
use crate::registry::RegistryError;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::json;
use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

/// The service that tokens are for, as registry and service name it.
pub(crate) const SERVICE: &str = "test-registry";
/// Who signs the tokens.
pub(crate) const ISSUER: &str = "test-issuer";
/// The refresh token of [`USER`].
pub const IDENTITY_TOKEN: &str = "identity-token-of-user";
/// Repositories below this path may be pulled by anybody, the others by [`USER`].
pub const PUBLIC: &str = "public/";
/// Most bytes of a request's body.
const MAX_BODY: u64 = 64 << 10;

/// What is asked of the service, and how it answers.
#[derive(Debug, Default)]
struct State {
    requests: Vec<String>,
    /// Added to the time, in seconds: a clock that is wrong.
    clock: i64,
}

/// A token service on loopback; its thread ends with the process.
#[derive(Debug)]
pub struct TokenServer {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    dir: TempDir,
}

/// What signs tokens.
struct Signer {
    key: EcdsaKeyPair,
    random: SystemRandom,
    /// The key's certificate, in DER.
    certificate: Vec<u8>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TokenServer {
    /// Starts one with a key and a CA of its own.
    pub fn start() -> Result<Self, RegistryError> {
        let dir = tempfile::tempdir()?;
        let (certificate, key) = certificates(dir.path())?;
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key, &random)
            .map_err(|e| io::Error::other(e.to_string()))?;
        let signer = Signer {
            key,
            random,
            certificate,
        };
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().filter_map(Result::ok) {
                // A client that hangs up harms itself only.
                let _ = serve(&stream, &signer, &shared);
            }
        });
        Ok(Self {
            address,
            state,
            dir,
        })
    }

    /// The requests for tokens so far: method, target, and the body of a POST.
    pub fn requests(&self) -> Vec<String> {
        lock(&self.state).requests.clone()
    }

    /// Sets the clock, in seconds before or after the true time.
    pub fn set_clock(&self, seconds: i64) {
        lock(&self.state).clock = seconds;
    }

    /// `http://127.0.0.1:<port>/token`.
    pub(crate) fn realm(&self) -> String {
        format!("http://{}/token", self.address)
    }

    /// The certificates by which the registry verifies tokens.
    pub(crate) fn bundle(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }
}

impl Signer {
    /// A token for the repository that may be pulled, if any.
    fn token(&self, user: &str, repository: Option<&str>, clock: i64) -> io::Result<String> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = since.map_or(0, |since| since.as_secs().cast_signed()) + clock;
        let access: Vec<_> = repository
            .iter()
            .map(|name| json!({"type": "repository", "name": name, "actions": ["pull"]}))
            .collect();
        let header = json!({
            "typ": "JWT",
            "alg": "ES256",
            "x5c": [STANDARD.encode(&self.certificate)],
        });
        let claims = json!({
            "iss": ISSUER, "sub": user, "aud": SERVICE,
            "iat": now, "nbf": now, "exp": now + 300,
            "jti": "one", "access": access,
        });
        let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let signature = self
            .key
            .sign(&self.random, signed.as_bytes())
            .map_err(|e| io::Error::other(e.to_string()))?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// One request, one answer.
fn serve(stream: &TcpStream, signer: &Signer, state: &Mutex<State>) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|l| l.parse().ok());
    let mut body = String::new();
    reader
        .take(length.unwrap_or(0).min(MAX_BODY))
        .read_to_string(&mut body)?;
    let target = first.split(' ').nth(1).unwrap_or_default();
    let clock = {
        let mut state = lock(state);
        let method = first.split(' ').next().unwrap_or_default();
        state
            .requests
            .push(format!("{method} {target} {body}").trim().to_owned());
        state.clock
    };
    // A GET has its fields in the target, a POST (OAuth2) in its body.
    let query = target.split_once('?').map_or("", |(_, query)| query);
    let fields = fields(if query.is_empty() { &body } else { query });
    let field = |name: &str| fields.get(name).map_or("", String::as_str);
    let basic = STANDARD.encode(format!("{USER}:{PASSWORD}"));
    let user = match (headers.get("authorization"), field("refresh_token")) {
        (Some(shown), _) if *shown == format!("Basic {basic}") => USER,
        (None, IDENTITY_TOKEN) => USER,
        (None, "") => "",
        _ => return answer(stream, 401, "{}"),
    };
    if field("service") != SERVICE {
        return answer(stream, 400, "{}");
    }
    // `repository:<name>:<actions>`: what is not allowed is left out, as others do.
    let scope = field("scope");
    let name = scope
        .strip_prefix("repository:")
        .and_then(|rest| rest.rsplit_once(':'))
        .map_or("", |(name, _)| name);
    let allowed = !user.is_empty() || name.starts_with(PUBLIC);
    let token = signer.token(user, allowed.then_some(name), clock)?;
    let key = if query.is_empty() {
        "access_token"
    } else {
        "token"
    };
    answer(stream, 200, &json!({ key: token }).to_string())
}

/// The fields of a query or form.
fn fields(text: &str) -> HashMap<String, String> {
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .map(|(name, value)| (name.to_owned(), decoded(value)))
        .collect()
}

/// Without `%XX` and `+`.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match (first, hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            (b'+', _) => bytes.push(b' '),
            _ => bytes.push(*first),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn answer(mut stream: &TcpStream, status: u16, body: &str) -> io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 {status} Status\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_decoded() {
        let found = fields("scope=repository%3Aa%2Fb%3Apull&service=x+y&odd=%4");
        assert_eq!(found["scope"], "repository:a/b:pull");
        assert_eq!(found["service"], "x y");
        assert_eq!(found["odd"], "%4");
    }
}
