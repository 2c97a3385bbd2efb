//! The streaming server behind a certificate, as `spherule serve` is given one.

use crate::Test;
use crate::streaming::{Running, V5};
use anyhow::{Context, ensure};
use spherule_tests::cri::container_config;
use spherule_tests::websocket::connect_tls;
use spherule_tests::{Daemon, DaemonOptions};
use std::process::Command;

pub(crate) const TESTS: &[Test] = &[
    ("commands_are_served_by_tls", served),
    ("half_of_a_certificate_is_refused", refused),
];

fn served() -> anyhow::Result<()> {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
    let other = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
    let dir = tempfile::tempdir()?;
    let (certificate, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
    std::fs::write(&certificate, made.cert.pem())?;
    std::fs::write(&key, made.signing_key.serialize_pem())?;
    let daemon = Daemon::with(DaemonOptions {
        args: vec![
            format!("--streaming-tls-cert={}", certificate.display()),
            format!("--streaming-tls-key={}", key.display()),
        ],
        ..DaemonOptions::default()
    })?;
    let pod = Running::on(
        &daemon,
        "streaming-tls",
        container_config("c", "exec sleep 600"),
    )?;
    let url = pod.exec(pod.request("cat; exit 3"))?;
    ensure!(url.starts_with("https://127.0.0.1:"), "{url}");
    // Neither without trust nor without TLS; the URL stays good.
    ensure!(connect_tls(&url, V5, other.cert.der()).is_err());
    let plain = url.replace("https://", "http://");
    let answer = spherule_tests::websocket::connect(&plain, V5);
    ensure!(!matches!(answer, Ok(Ok(_))), "it was served without TLS");
    let mut client = connect_tls(&url, V5, made.cert.der())?.map_err(anyhow::Error::msg)?;
    let sent = vec![b'x'; 300_000];
    client.say(0, &sent)?;
    client.end(0)?;
    let heard = client.hear(|_| false)?;
    ensure!(heard[&1] == sent, "{} bytes came back", heard[&1].len());
    let status: serde_json::Value = serde_json::from_slice(&heard[&3])?;
    ensure!(status["details"]["causes"][0]["message"] == "3", "{status}");
    Ok(())
}

fn refused() -> anyhow::Result<()> {
    let serve = |args: &[&str]| -> anyhow::Result<String> {
        let mut command = Command::new(spherule_tests::program("spherule"));
        let out = command.arg("serve").args(args).output()?;
        ensure!(!out.status.success(), "{out:?}");
        String::from_utf8(out.stderr).context("text")
    };
    for (given, wanted) in [
        ("--streaming-tls-cert", "--streaming-tls-key"),
        ("--streaming-tls-key", "--streaming-tls-cert"),
    ] {
        let said = serve(&[given, "/no/such"])?;
        ensure!(said.contains(wanted), "{said}");
    }
    Ok(())
}
