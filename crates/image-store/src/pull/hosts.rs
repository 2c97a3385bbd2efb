//! Where a registry is reached: `<registries_dir>/<host[:port]>/hosts.toml`, in
//! the format of containerd's `certs.d`; `_default` is for all other hosts.
//!
//! ```toml
//! server = "https://registry.test"
//!
//! [host."http://127.0.0.1:5000"]
//! capabilities = ["pull", "resolve"]
//!
//! [host."https://mirror.test"]
//! ca = "ca.pem"                          # or a list of files
//! client = [["client.pem", "client.key"]] # or one file with both
//! dial_timeout = "3s"
//! header = { "x-team" = "a" }            # sent to this host only
//! ```
//!
//! Hosts are tried in the order of the file, the server last. Without a file a
//! registry is reached by HTTPS under its own name.

mod certificates;
mod extras;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use reqwest::{Url, header::HeaderMap};
use serde::Deserialize;
use toml::{Table, Value};

use certificates::{ClientFiles, OneOrMany};
use extras::HeaderValues;

const DEFAULT_DIR: &str = "_default";
/// How long a host may take to accept a connection.
const DIAL_TIMEOUT: Duration = Duration::from_secs(15);

/// Why the configuration of a registry cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// Not TOML, or a key that is not known here.
    #[error("{} is not valid", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// An address that is no HTTP URL.
    #[error("{}: {url:?} is not an http:// or https:// address", path.display())]
    Url {
        /// The file, or the registry's name.
        path: PathBuf,
        /// The address.
        url: String,
    },
    /// A certificate file without certificates.
    #[error("{} holds no certificate in PEM form", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
    },
    /// Files that are no certificate and key to show a server.
    #[error(
        "{} is no client certificate with its key in PEM form: give [[\"CERTIFICATE\", \"KEY\"]], or one file with both",
        path.display()
    )]
    Client {
        /// The certificate's file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: reqwest::Error,
    },
    /// A value that cannot be used.
    #[error("{}: {key}: {message}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key at fault.
        key: String,
        /// What is wrong with it, and what would be right.
        message: String,
    },
}

/// One address to try.
#[derive(Debug, Clone)]
pub(super) struct Host {
    /// Ends in `/v2/`, unless the file says otherwise.
    pub(super) base: Url,
    /// The registry itself, not a mirror: the credentials are meant for it.
    pub(super) is_server: bool,
    /// Whether it may say which manifest a tag means.
    pub(super) resolves: bool,
    pub(super) skip_verify: bool,
    pub(super) certificates: Vec<reqwest::Certificate>,
    /// What it is shown, if it asks for a certificate.
    pub(super) identity: Option<reqwest::Identity>,
    /// Sent with each request to it.
    pub(super) headers: HeaderMap,
    pub(super) dial_timeout: Duration,
}

impl Host {
    /// A registry without a word about it in a file.
    fn plain(base: Url) -> Self {
        Self {
            base,
            is_server: true,
            resolves: true,
            skip_verify: false,
            certificates: Vec::new(),
            identity: None,
            headers: HeaderMap::new(),
            dial_timeout: DIAL_TIMEOUT,
        }
    }

    /// Host, and port if it is not the scheme's own.
    pub(super) fn name(&self) -> String {
        let host = self.base.host_str().unwrap_or_default();
        match self.base.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        }
    }
}

/// What the file says of one address; at its top, of the server.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HostTable {
    capabilities: Option<Vec<Capability>>,
    ca: Option<OneOrMany>,
    client: Option<ClientFiles>,
    #[serde(default)]
    header: HeaderValues,
    dial_timeout: Option<String>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    override_path: bool,
}

#[derive(Deserialize, PartialEq, Eq, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Capability {
    Pull,
    Resolve,
    Push,
}

/// The addresses of `registry`, in the order to try them.
pub(super) fn load(dir: Option<&Path>, registry: &str) -> Result<Vec<Host>, HostsError> {
    for name in [registry, DEFAULT_DIR] {
        let Some(dir) = dir.map(|dir| dir.join(name)) else {
            break;
        };
        let path = dir.join("hosts.toml");
        match fs::read_to_string(&path) {
            Ok(text) => return parse(&text, &path, &dir, registry),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(HostsError::Read { path, source }),
        }
    }
    let base = url(&format!("https://{registry}"), false, Path::new(registry))?;
    Ok(vec![Host::plain(base)])
}

fn parse(text: &str, path: &Path, dir: &Path, registry: &str) -> Result<Vec<Host>, HostsError> {
    let invalid = |source| HostsError::Parse {
        path: path.to_owned(),
        source: Box::new(source),
    };
    let mut file: Table = toml::from_str(text).map_err(invalid)?;
    let server = file.remove("server").map(Value::try_into::<String>);
    let server = server.transpose().map_err(within("server", invalid))?;
    let addresses = file.remove("host").map(Value::try_into::<Table>);
    let addresses = addresses.transpose().map_err(within("host", invalid))?;

    let own: HostTable = file.try_into().map_err(invalid)?;
    let server = server.unwrap_or_else(|| format!("https://{registry}"));
    let server = url(&server, own.override_path, path)?;
    let mut tables = Vec::new();
    for (address, table) in addresses.unwrap_or_default() {
        let table = table.try_into::<HostTable>();
        let table = table.map_err(within(&format!("[host.{address:?}]"), invalid))?;
        tables.push((url(&address, table.override_path, path)?, table));
    }
    if !tables.iter().any(|(base, _)| *base == server) {
        tables.push((server.clone(), own));
    }
    let mut hosts = Vec::new();
    for (base, table) in tables {
        let is_server = base == server;
        hosts.extend(host(base, is_server, table, path, dir)?);
    }
    Ok(hosts)
}

/// Says in which part of the file an error is, which the error does not know.
fn within(
    place: &str,
    invalid: impl Fn(toml::de::Error) -> HostsError,
) -> impl FnOnce(toml::de::Error) -> HostsError {
    move |error| {
        let text = format!("{place}: {}", error.message());
        invalid(serde::de::Error::custom(text))
    }
}

/// The host that a table describes; none if it may not be pulled from.
fn host(
    base: Url,
    is_server: bool,
    table: HostTable,
    path: &Path,
    dir: &Path,
) -> Result<Option<Host>, HostsError> {
    let can = |capability| {
        let listed = table.capabilities.as_ref();
        listed.is_none_or(|listed| listed.contains(&capability))
    };
    if !can(Capability::Pull) {
        return Ok(None);
    }
    let resolves = can(Capability::Resolve);
    let dial_timeout = table.dial_timeout.as_deref();
    Ok(Some(Host {
        is_server,
        resolves,
        skip_verify: table.skip_verify,
        certificates: certificates::trusted(table.ca, dir)?,
        identity: certificates::identity(table.client, path, dir)?,
        headers: table.header.parse(path)?,
        dial_timeout: extras::dial_timeout(dial_timeout, path)?.unwrap_or(DIAL_TIMEOUT),
        base,
    }))
}

fn url(text: &str, override_path: bool, path: &Path) -> Result<Url, HostsError> {
    let bad = || HostsError::Url {
        path: path.to_owned(),
        url: text.to_owned(),
    };
    let with_scheme = if text.contains("://") {
        text.to_owned()
    } else {
        format!("https://{text}")
    };
    let mut url = Url::parse(&with_scheme).map_err(|_| bad())?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() || url.query().is_some() {
        return Err(bad());
    }
    let mut base = url.path().trim_end_matches('/').to_owned();
    if !override_path && !base.ends_with("/v2") {
        base += "/v2";
    }
    url.set_path(&(base + "/"));
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_text(text: &str) -> Result<Vec<Host>, HostsError> {
        parse(
            text,
            Path::new("hosts.toml"),
            Path::new("/nonexistent"),
            "reg.test:5000",
        )
    }

    fn bases(hosts: &[Host]) -> Vec<&str> {
        hosts.iter().map(|host| host.base.as_str()).collect()
    }

    #[test]
    fn registry_without_file_is_reached_by_https() {
        let hosts = load(None, "reg.test:5000").unwrap();
        assert_eq!(bases(&hosts), ["https://reg.test:5000/v2/"]);
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(Some(dir.path()), "reg.test").unwrap().len(), 1);
    }

    #[test]
    fn hosts_come_in_the_order_of_the_file_and_the_server_last() {
        let hosts = parse_text(
            r#"
            server = "https://up.test"
            [host."http://z.test:1"]
            capabilities = ["pull", "resolve"]
            [host."https://a.test/prefix"]
            capabilities = ["pull"]
            skip_verify = true
            [host."https://push.test"]
            capabilities = ["push"]
            [host."https://raw.test/x"]
            override_path = true
            "#,
        )
        .unwrap();
        let expected = [
            "http://z.test:1/v2/",
            "https://a.test/prefix/v2/",
            "https://raw.test/x/",
            "https://up.test/v2/",
        ];
        assert_eq!(bases(&hosts), expected);
        assert_eq!(
            hosts.iter().map(|h| h.is_server).collect::<Vec<_>>(),
            [false, false, false, true]
        );
        assert!(hosts[0].resolves && !hosts[1].resolves && hosts[1].skip_verify);
    }

    #[test]
    fn file_is_found_by_host_or_default() {
        let dir = tempfile::tempdir().unwrap();
        for (name, server) in [
            ("reg.test:5000", "http://own.test"),
            ("_default", "http://all.test"),
        ] {
            fs::create_dir(dir.path().join(name)).unwrap();
            let file = dir.path().join(name).join("hosts.toml");
            fs::write(file, format!("server = {server:?}")).unwrap();
        }
        let own = load(Some(dir.path()), "reg.test:5000").unwrap();
        assert_eq!(bases(&own), ["http://own.test/v2/"]);
        assert_eq!(
            bases(&load(Some(dir.path()), "x.test").unwrap()),
            ["http://all.test/v2/"]
        );
    }

    #[test]
    fn unknown_keys_and_bad_values_are_refused_by_name() {
        let refusal = |text: &str| {
            let error = parse_text(text).expect_err("refused");
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            format!("{error}: {}", cause.unwrap_or_default())
        };
        assert!(refusal("sever = 'x'").contains("sever"));
        assert!(refusal("[host.'http://a.test']\nclint = 'x'").contains("clint"));
        assert!(refusal("[host.'http://a.test']\nclint = 'x'").contains("a.test"));
        assert!(refusal("server = 1").contains("server"));
        assert!(refusal("host = 1").contains("host"));
        assert!(refusal("[host.'http://a.test']\nclient = 'missing.pem'").contains("missing.pem"));
        assert!(refusal("client = [['a.pem', 'a.key'], ['b.pem', 'b.key']]").contains("one"));
        assert!(refusal("client = 1").contains("client"));
        for time in ["5", "0s", "-1s", "soon", ""] {
            let text = refusal(&format!("dial_timeout = {time:?}"));
            assert!(text.contains("dial_timeout"), "{text}");
        }
        for header in ["'a b' = 'x'", "a = 'x\\ny'", "host = 'x'", "a = 1"] {
            let text = refusal(&format!("[header]\n{}", header.replace('\'', "\"")));
            assert!(text.contains("header"), "{text}");
        }
        assert!(refusal("capabilities = ['fly']").contains("fly"));
        assert!(refusal("server = 'ftp://x'").contains("ftp://x"));
        assert!(refusal("ca = 'missing.pem'").contains("missing.pem"));
        assert!(refusal("= 1").contains("not valid"));
    }

    #[test]
    fn headers_and_the_time_to_connect_belong_to_their_host() {
        let hosts = parse_text(
            r#"
            server = "https://up.test"
            dial_timeout = "2s"
            [host."https://a.test"]
            dial_timeout = "1m30s"
            [host."https://a.test".header]
            x-team = "a"
            x-many = ["b", "c"]
            "#,
        )
        .unwrap();
        let [mirror, server] = &hosts[..] else {
            panic!("{hosts:?}")
        };
        assert_eq!(mirror.dial_timeout, Duration::from_secs(90));
        assert_eq!(mirror.headers["x-team"], "a");
        assert_eq!(mirror.headers.get_all("x-many").iter().count(), 2);
        assert_eq!(server.dial_timeout, Duration::from_secs(2));
        assert!(server.headers.is_empty());
        // It may be a secret.
        assert!(mirror.headers["x-team"].is_sensitive());
    }

    #[test]
    fn certificate_file_must_hold_one() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("empty.pem"), "none").unwrap();
        let error = parse("ca = ['empty.pem']", Path::new("f"), dir.path(), "r.test").unwrap_err();
        assert!(matches!(error, HostsError::Certificate { .. }), "{error}");
    }
}
