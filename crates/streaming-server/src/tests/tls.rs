//! The server behind a certificate.

use super::spdy_client::{ask_on, host_and_path};
use super::websocket_client::{WebSocketClient, upgrade};
use super::{Fixture, pattern};
use crate::server::Config;
use crate::tls::{TlsError, tls_config};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

/// A certificate of 127.0.0.1 in files, as a node's administrator keeps them.
struct Files {
    _dir: TempDir,
    certificate: PathBuf,
    key: PathBuf,
    trusted: CertificateDer<'static>,
}

impl Files {
    fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (certificate, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
        std::fs::write(&certificate, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        Self {
            _dir: dir,
            certificate,
            key,
            trusted: made.cert.der().clone(),
        }
    }

    async fn serve(&self) -> Fixture {
        let config = Config {
            tls: Some(tls_config(&self.certificate, &self.key).unwrap()),
            ..Config::loopback()
        };
        Fixture::of(config).await
    }

    /// A client that trusts this certificate, or none.
    async fn connect(&self, host: &str, trusts: bool) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        if trusts {
            roots.add(self.trusted.clone()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let socket = TcpStream::connect(host).await?;
        let name = ServerName::try_from("127.0.0.1").unwrap();
        TlsConnector::from(Arc::new(config))
            .connect(name, socket)
            .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_and_ports_go_by_tls_as_without() {
    let files = Files::new();
    let fixture = files.serve().await;
    let url = fixture.exec("cat");
    assert!(url.starts_with("https://127.0.0.1:"), "{url}");
    let (host, path) = host_and_path(&url);
    let mut wire = files.connect(host, true).await.unwrap();
    let head = ask_on(&mut wire, host, path, &upgrade("v5.channel.k8s.io")).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let socket = WebSocketStream::from_raw_socket(wire, Role::Client, None).await;
    let mut client = WebSocketClient { socket };
    let sent = pattern(50_000);
    client.say(0, &sent).await;
    client.send(&[255, 0]).await;
    let (heard, code) = client.heard().await;
    assert_eq!(heard[&1], sent);
    assert!(String::from_utf8_lossy(&heard[&3]).contains("Success"));
    assert_eq!(code, 1000);

    // A client that vanishes takes its command along, here too.
    let url = fixture.exec("sleep");
    let (host, path) = host_and_path(&url);
    let mut wire = files.connect(host, true).await.unwrap();
    ask_on(&mut wire, host, path, &upgrade("v5.channel.k8s.io")).await;
    fixture.backend.lives(1).await;
    drop(wire);
    fixture.backend.lives(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tls_or_trust_nothing_is_served() {
    let files = Files::new();
    let fixture = files.serve().await;
    let url = fixture.exec("exit 0");
    let (host, path) = host_and_path(&url);
    let refused = files.connect(host, false).await.unwrap_err();
    assert!(refused.to_string().contains("certificate"), "{refused}");
    let mut plain = TcpStream::connect(host).await.unwrap();
    let request = format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    plain.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // At most an alert; a reset is as good.
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    // Neither took the token.
    let mut wire = files.connect(host, true).await.unwrap();
    let head = ask_on(&mut wire, host, path, &upgrade("v5.channel.k8s.io")).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let (one, other) = (Files::new(), Files::new());
    let missing = Path::new("/nonexistent/tls.crt");
    let refused = tls_config(missing, &one.key).unwrap_err();
    assert!(
        matches!(&refused, TlsError::Certificate { .. }),
        "{refused}"
    );
    assert!(refused.to_string().contains("/nonexistent/tls.crt"));
    // Taken for each other.
    let refused = tls_config(&one.key, &one.key).unwrap_err();
    assert!(
        matches!(&refused, TlsError::Certificate { .. }),
        "{refused}"
    );
    let refused = tls_config(&one.certificate, &one.certificate).unwrap_err();
    assert!(matches!(&refused, TlsError::Key { .. }), "{refused}");
    let refused = tls_config(&one.certificate, &other.key).unwrap_err();
    assert!(matches!(&refused, TlsError::Unusable { .. }), "{refused}");
}
