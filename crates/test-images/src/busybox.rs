//! The image that the demo and most tests run: Debian's busybox-static.

use crate::{Compression, ImageBuilder, Layer};
use serde_json::json;
use std::{fs, io};

/// Where Debian's package busybox-static puts its one file.
pub const BUSYBOX: &str = "/bin/busybox";

/// An image of busybox with its commands as links, a root user and `nobody`.
/// Fails if the package busybox-static is not installed.
pub fn busybox_image(reference: &str) -> io::Result<ImageBuilder> {
    let busybox = fs::read(BUSYBOX).map_err(|e| {
        io::Error::new(e.kind(), format!("{BUSYBOX}: {e} (package busybox-static)"))
    })?;
    let mut layer = Layer::default();
    for dir in [
        "bin", "dev", "etc", "home", "proc", "root", "sys", "usr", "var", "www",
    ] {
        layer = layer.dir(dir, 0o755)?;
    }
    layer = layer
        .dir("tmp", 0o1777)?
        .file("bin/busybox", 0o755, &busybox)?
        .file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\nweb:x:1000:1000::/home:/bin/sh\n")?
        .file("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\nweb:x:1000:\nextra:x:2000:web\n")?;
    for command in COMMANDS {
        layer = layer.symlink(&format!("bin/{command}"), "busybox")?;
    }
    let config = json!({"Env": ["PATH=/bin"], "Cmd": ["sh"], "WorkingDir": "/"});
    Ok(ImageBuilder::new(reference)
        .config(config)
        .layer(layer.into_bytes()?, Compression::Gzip))
}

/// What the manifests under tests/pods and the tests call.
const COMMANDS: &[&str] = &[
    "[",
    "ash",
    "awk",
    "base64",
    "blkdiscard",
    "blockdev",
    "cat",
    "chmod",
    "chown",
    "cut",
    "date",
    "dd",
    "df",
    "echo",
    "env",
    "expr",
    "false",
    "find",
    "free",
    "grep",
    "head",
    "hostname",
    "httpd",
    "id",
    "ip",
    "kill",
    "ln",
    "ls",
    "md5sum",
    "mkdir",
    "mknod",
    "mount",
    "mv",
    "nc",
    "nproc",
    "printf",
    "ps",
    "pwd",
    "readlink",
    "rm",
    "rmdir",
    "sed",
    "seq",
    "sh",
    "sha256sum",
    "sleep",
    "sort",
    "stat",
    "stty",
    "sync",
    "tail",
    "tee",
    "test",
    "touch",
    "tr",
    "true",
    "tty",
    "umount",
    "uname",
    "unshare",
    "usleep",
    "wc",
    "wget",
    "whoami",
    "yes",
];
