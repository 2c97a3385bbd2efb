//! Files between the host and containers: `spherule cp`.

use crate::{Test, shared};
use anyhow::{Context, ensure};
use serde_json::{Value, json};
use spherule_tests::manifest::{container, pod};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

pub(crate) const TESTS: &[Test] = &[("files_go_both_ways_with_no_program_in_the_image", both_ways)];

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("a plain path")
}

fn both_ways() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    // PATH leads nowhere: no tar, no sh, nothing. As a user that is not root.
    let script = "while ! /bin/test -e /v/end; do /bin/usleep 50000; done";
    let c = json!({
        "command": ["/bin/sh", "-c", script],
        "env": [{"name": "PATH", "value": "/nowhere"}],
        "securityContext": {"runAsUser": 1000, "runAsGroup": 1000},
        "volumeMounts": [{"name": "v", "mountPath": "/v"}],
    });
    let spec = json!({
        "volumes": [{"name": "v", "emptyDir": {}}],
        "securityContext": {"fsGroup": 1000},
    });
    daemon.run_detached(&pod("cp", &[container("c", script, c)], spec))?;
    let runs = |pod: &Value| pod["containers"][0]["state"] == "STATE_RUNNING";
    daemon.wait_for("cp", "running", runs)?;
    let within = |script: &str| {
        let ran = daemon.cli(["exec", "cp", "--", "/bin/sh", "-c", script])?;
        ran.ok()
    };

    let dir = tempfile::tempdir()?;
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("sub"))?;
    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| n.to_le_bytes()[1]).collect();
    fs::write(tree.join("sub/data"), &bytes)?;
    fs::write(tree.join("run"), "#!/bin/sh\n")?;
    fs::set_permissions(tree.join("run"), fs::Permissions::from_mode(0o750))?;
    symlink("sub/data", tree.join("link"))?;

    // In: by a new name, then into the directory that it is by then.
    for _ in 0..2 {
        daemon.cli(["cp", text(&tree)?, "cp:/v/new"])?.ok()?;
    }
    let found = within("cd /v/new && /bin/find . | /bin/sort && /bin/stat -c '%a %u' run")?;
    let expected = ". ./link ./run ./sub ./sub/data \
                    ./tree ./tree/link ./tree/run ./tree/sub ./tree/sub/data 750 1000";
    let found: Vec<_> = found.split_whitespace().collect();
    ensure!(found.join(" ") == expected, "{found:?}");
    ensure!(within("/bin/readlink /v/new/link")? == "sub/data\n");

    // Out: all of it again, but the link, which is named.
    let back = dir.path().join("back");
    let out = daemon.cli(["cp", "cp:/v/new/tree", text(&back)?])?;
    ensure!(
        out.code == Some(1) && out.stderr.contains("link to sub/data"),
        "{out}"
    );
    ensure!(fs::read(back.join("sub/data"))? == bytes);
    ensure!(!back.join("link").exists());
    let mode = back.join("run").metadata()?.permissions().mode();
    ensure!(mode & 0o7777 == 0o750, "{mode:o}");
    // A single file, and one whose length nobody knows beforehand.
    daemon
        .cli([
            "cp",
            "default/cp:/v/new/sub/data",
            text(&dir.path().join("one"))?,
        ])?
        .ok()?;
    ensure!(fs::read(dir.path().join("one"))? == bytes);
    daemon
        .cli(["cp", "cp:/proc/mounts", text(dir.path())?])?
        .ok()?;
    ensure!(fs::read_to_string(dir.path().join("mounts"))?.contains(" /v "));

    // What a container put in the way on the host's side leads nowhere.
    let trap = dir.path().join("trap");
    fs::create_dir(&trap)?;
    symlink("/", trap.join("tree"))?;
    let refused = daemon.cli(["cp", "cp:/v/new/tree", text(&trap)?])?;
    ensure!(
        refused.code == Some(1) && refused.stderr.contains("tree"),
        "{refused}"
    );

    let none = text(&dir.path().join("none"))?.to_owned();
    let wrong: [(&str, &str, &str); 6] = [
        ("cp:/none", "/tmp", "/none"),
        (&none, "cp:/v", "none"),
        (text(&tree)?, "cp:/none/deeper/new", "/none/deeper"),
        (text(&tree)?, "cp:/etc/new", "denied"),
        (text(&tree)?, "/tmp", "pod:path"),
        (text(&tree)?, "ghost:/v", "ghost"),
    ];
    for (from, to, word) in wrong {
        let refused = daemon.cli(["cp", from, to])?;
        let told = refused.stderr.to_lowercase();
        ensure!(refused.code == Some(1) && told.contains(word), "{refused}");
    }
    ensure!(within("/bin/ls /v")? == "new\n", "a copy left something");
    within("/bin/touch /v/end")?;
    Ok(())
}
