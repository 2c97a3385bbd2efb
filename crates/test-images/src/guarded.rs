//! A registry that does not let everybody in: TLS by a CA of its own, certificates
//! of clients, passwords, tokens.

use crate::registry::{RegistryError, Server};
use crate::tokens::{self, TokenServer};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The name that guarded registries know.
pub const USER: &str = "user";
/// The password of [`USER`].
pub const PASSWORD: &str = "pass";
/// Both as htpasswd -B writes them.
const HTPASSWD: &str = "user:$2b$04$WiaV.vyk4lK4TNWokKWIXeJ7zqR7ICBk8nd.vZP6YKWRd4ARBRCli\n";

/// What a registry asks of its clients.
#[derive(Debug, Clone, Copy, Default)]
pub struct Guard {
    /// It speaks TLS.
    pub tls: bool,
    /// It wants a certificate by its CA; only with `tls`.
    pub client_certificate: bool,
    /// It wants [`USER`] and [`PASSWORD`].
    pub password: bool,
}

/// A guarded door to the content of a [`crate::Registry`].
#[derive(Debug)]
pub struct GuardedRegistry {
    server: Server,
    dir: TempDir,
}

impl GuardedRegistry {
    pub(crate) fn start(data: &Path, guard: Guard) -> Result<Self, RegistryError> {
        let dir = tempfile::tempdir()?;
        let path = |name: &str| dir.path().join(name).display().to_string();
        let mut rules = String::new();
        if guard.tls {
            certificates(dir.path())?;
            rules += &format!(
                "  tls:\n    certificate: {}\n    key: {}\n",
                path("server.pem"),
                path("server.key")
            );
            if guard.client_certificate {
                rules += &format!("    clientcas: [{}]\n", path("ca.pem"));
            }
        }
        if guard.password {
            fs::write(dir.path().join("htpasswd"), HTPASSWD)?;
            rules += &format!(
                "auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
                path("htpasswd")
            );
        }
        let server = Server::start(dir.path(), data, &rules)?;
        Ok(Self { server, dir })
    }

    /// Plain HTTP, for those who have a token of `tokens`.
    pub(crate) fn with_tokens(data: &Path, tokens: &TokenServer) -> Result<Self, RegistryError> {
        let dir = tempfile::tempdir()?;
        let rules = format!(
            "auth:\n  token:\n    realm: {}\n    service: {}\n    issuer: {}\n    \
             rootcertbundle: {}\n",
            tokens.realm(),
            tokens::SERVICE,
            tokens::ISSUER,
            tokens.bundle().display()
        );
        let server = Server::start(dir.path(), data, &rules)?;
        Ok(Self { server, dir })
    }

    /// `127.0.0.1:<port>`.
    pub fn address(&self) -> &str {
        &self.server.address
    }

    /// The certificate of the CA that the registry's own is by.
    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// A certificate that the registry lets in.
    pub fn client_certificate(&self) -> PathBuf {
        self.dir.path().join("client.pem")
    }

    /// The key of [`Self::client_certificate`].
    pub fn client_key(&self) -> PathBuf {
        self.dir.path().join("client.key")
    }
}

/// Makes a CA, and a server's and a client's certificate by it; returns the
/// client's with its key, both in DER.
pub(crate) fn certificates(dir: &Path) -> Result<(Vec<u8>, Vec<u8>), RegistryError> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    fs::write(dir.join("ca.pem"), ca.pem())?;
    let mut last = Default::default();
    for (name, names, purpose) in [
        (
            "server",
            vec!["127.0.0.1".to_owned()],
            ExtendedKeyUsagePurpose::ServerAuth,
        ),
        ("client", Vec::new(), ExtendedKeyUsagePurpose::ClientAuth),
    ] {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names)?;
        params.extended_key_usages = vec![purpose];
        let certificate = params.signed_by(&key, &ca)?;
        fs::write(dir.join(format!("{name}.pem")), certificate.pem())?;
        fs::write(dir.join(format!("{name}.key")), key.serialize_pem())?;
        last = (certificate.der().to_vec(), key.serialize_der());
    }
    Ok(last)
}
