//! Where a registry is reached: `<registries_dir>/<host[:port]>/hosts.toml`, in
//! the format of containerd's `certs.d`; `_default` is for all other hosts.
//!
//! ```toml
//! server = "https://registry.test"
//!
//! [host."http://127.0.0.1:5000"]
//! capabilities = ["pull", "resolve"]
//! ```
//!
//! Hosts are tried in the order of the file, the server last. Without a file a
//! registry is reached by HTTPS under its own name.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use reqwest::Url;
use serde::Deserialize;

const DEFAULT_DIR: &str = "_default";

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
}

impl Host {
    /// Host, and port if it is not the scheme's own.
    pub(super) fn name(&self) -> String {
        let host = self.base.host_str().unwrap_or_default();
        match self.base.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    server: Option<String>,
    capabilities: Option<Vec<Capability>>,
    ca: Option<OneOrMany>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    override_path: bool,
    #[serde(default)]
    host: toml::Table,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HostTable {
    capabilities: Option<Vec<Capability>>,
    ca: Option<OneOrMany>,
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

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(PathBuf),
    Many(Vec<PathBuf>),
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
    Ok(vec![Host {
        base,
        is_server: true,
        resolves: true,
        skip_verify: false,
        certificates: Vec::new(),
    }])
}

fn parse(text: &str, path: &Path, dir: &Path, registry: &str) -> Result<Vec<Host>, HostsError> {
    let invalid = |source| HostsError::Parse {
        path: path.to_owned(),
        source: Box::new(source),
    };
    let file: File = toml::from_str(text).map_err(invalid)?;
    let server_text = file.server.unwrap_or_else(|| format!("https://{registry}"));
    let server = url(&server_text, file.override_path, path)?;
    let mut tables = Vec::new();
    for (address, table) in file.host {
        let table: HostTable = table.try_into().map_err(|source: toml::de::Error| {
            // Which of the tables it is, the error does not know.
            invalid(serde::de::Error::custom(format!(
                "[host.{address:?}]: {}",
                source.message()
            )))
        })?;
        tables.push((url(&address, table.override_path, path)?, table));
    }
    let own = HostTable {
        capabilities: file.capabilities,
        ca: file.ca,
        skip_verify: file.skip_verify,
        override_path: file.override_path,
    };
    if !tables.iter().any(|(base, _)| *base == server) {
        tables.push((server.clone(), own));
    }
    let mut hosts = Vec::new();
    for (base, table) in tables {
        let can = |capability| {
            table
                .capabilities
                .as_ref()
                .is_none_or(|listed| listed.contains(&capability))
        };
        if can(Capability::Pull) {
            hosts.push(Host {
                is_server: base == server,
                base,
                resolves: can(Capability::Resolve),
                skip_verify: table.skip_verify,
                certificates: certificates(table.ca, dir)?,
            });
        }
    }
    Ok(hosts)
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

fn certificates(
    files: Option<OneOrMany>,
    dir: &Path,
) -> Result<Vec<reqwest::Certificate>, HostsError> {
    let files = match files {
        None => return Ok(Vec::new()),
        Some(OneOrMany::One(file)) => vec![file],
        Some(OneOrMany::Many(files)) => files,
    };
    let mut certificates = Vec::new();
    for file in files {
        let path = dir.join(file);
        let pem = fs::read(&path).map_err(|source| HostsError::Read {
            path: path.clone(),
            source,
        })?;
        let found = reqwest::Certificate::from_pem_bundle(&pem).unwrap_or_default();
        if found.is_empty() {
            return Err(HostsError::Certificate { path });
        }
        certificates.extend(found);
    }
    Ok(certificates)
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
        assert!(refusal("[host.'http://a.test']\nclient = 'x'").contains("client"));
        assert!(refusal("[host.'http://a.test']\nclient = 'x'").contains("a.test"));
        assert!(refusal("capabilities = ['fly']").contains("fly"));
        assert!(refusal("server = 'ftp://x'").contains("ftp://x"));
        assert!(refusal("ca = 'missing.pem'").contains("missing.pem"));
        assert!(refusal("= 1").contains("not valid"));
    }

    #[test]
    fn certificate_file_must_hold_one() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("empty.pem"), "none").unwrap();
        let error = parse("ca = ['empty.pem']", Path::new("f"), dir.path(), "r.test").unwrap_err();
        assert!(matches!(error, HostsError::Certificate { .. }), "{error}");
    }
}
