//! The smallest pods: output and exit codes.

use crate::Test;
use anyhow::ensure;
use spherule_tests::{Daemon, checkout};

pub(crate) const TESTS: &[Test] = &[
    ("hello_says_hello_and_ends_well", hello),
    ("exit_code_of_the_container_is_the_commands", exit_code),
];

fn hello() -> anyhow::Result<()> {
    let daemon = Daemon::start()?;
    let manifest = std::fs::read_to_string(checkout().join("tests/pods/hello.yaml"))?;
    let out = daemon.run(&manifest)?.ok()?;
    ensure!(
        out.contains("[hello] hello from hello, kernel 6.12"),
        "{out}"
    );
    Ok(())
}

fn exit_code() -> anyhow::Result<()> {
    let daemon = Daemon::start()?;
    let manifest = "{apiVersion: v1, kind: Pod, metadata: {name: seven}, spec: {restartPolicy: Never, \
         containers: [{name: c, image: 'localhost/busybox:demo', imagePullPolicy: Never, \
         command: [sh, -c, 'echo last words; echo to stderr >&2; exit 7']}]}}";
    let ran = daemon.run(manifest)?;
    ensure!(ran.stderr.contains("[c] to stderr"), "{ran}");
    ensure!(ran.code(7)?.contains("[c] last words"), "no output");
    Ok(())
}
