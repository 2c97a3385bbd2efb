//! Builds spherule-init as a static binary and packs it into the initramfs that
//! every guest boots from (`target/guest/initramfs.cpio`).

use crate::run::{cargo, checked, step};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};

/// Largest spherule-init in bytes: every guest copies it to memory at boot.
const MAX_BINARY: u64 = 2 << 20;
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Brings the initramfs up to date and returns its path. Cargo decides whether
/// anything is to be compiled; the same binary gives the same bytes.
pub(crate) fn ensure(root: &Path) -> Result<PathBuf> {
    let guest = root.join("target/guest");
    let binary = build(root, &guest.join("build"))?;
    let init = fs::read(&binary).with_context(|| format!("reading {}", binary.display()))?;
    let size = init.len() as u64;
    ensure!(
        size <= MAX_BINARY,
        "spherule-init has {size} bytes, more than {MAX_BINARY}; find out what made it grow"
    );
    let path = guest.join("initramfs.cpio");
    let archive = archive(&init);
    if fs::read(&path).is_ok_and(|old| old == archive) {
        return Ok(path);
    }
    // Replaced in one step: a VM may be booting from it.
    let temporary = guest.join("initramfs.cpio.tmp");
    fs::write(&temporary, archive).with_context(|| format!("writing {}", temporary.display()))?;
    fs::rename(&temporary, &path).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

/// Compiles spherule-init. A target directory of its own, since the flags differ
/// from those of the host's binaries.
fn build(root: &Path, target_dir: &Path) -> Result<PathBuf> {
    // Static, and linked to fixed addresses: nothing to relocate at start. Paths
    // of the build machine stay out of the binary.
    let mut flags = vec![
        "-Ctarget-feature=+crt-static".to_owned(),
        "-Crelocation-model=static".to_owned(),
        format!("--remap-path-prefix={}=spherule", root.display()),
    ];
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_home = cargo_home.or_else(|| Some(std::env::home_dir()?.join(".cargo")));
    if let Some(home) = cargo_home {
        flags.push(format!("--remap-path-prefix={}=cargo", home.display()));
    }
    step("building spherule-init");
    let mut cargo = cargo(root);
    cargo
        .args(["build", "--profile", "guest", "--package", "guest-agent"])
        .args(["--target", TARGET, "--target-dir"])
        .arg(target_dir)
        // Encoded: paths may contain spaces. It wins over RUSTFLAGS.
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    checked(&mut cargo)?;
    Ok(target_dir.join(TARGET).join("guest/spherule-init"))
}

/// What the kernel finds before spherule-init has mounted anything. Rust's
/// runtime wants /dev/null where the kernel found no console.
fn archive(init: &[u8]) -> Vec<u8> {
    let mut cpio = Cpio::default();
    for dir in ["dev", "proc", "sys", "run"] {
        cpio.entry(dir, 0o040_755, (0, 0), &[]);
    }
    cpio.entry("dev/console", 0o020_600, (5, 1), &[]);
    cpio.entry("dev/null", 0o020_666, (1, 3), &[]);
    cpio.entry("init", 0o100_755, (0, 0), init);
    cpio.finish()
}

/// Writer of the "newc" cpio format (Documentation/driver-api/early-userspace/
/// buffer-format.rst): a header of hexadecimal numbers, the name, the data, each
/// padded to four bytes.
#[derive(Default)]
pub(crate) struct Cpio {
    bytes: Vec<u8>,
    entries: u32,
}

impl Cpio {
    pub(crate) fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) {
        self.entries += 1;
        self.record(self.entries, name, mode, device, data);
    }

    fn record(&mut self, inode: u32, name: &str, mode: u32, device: (u32, u32), data: &[u8]) {
        // Owner, group, links and time are constants: the archive depends on
        // nothing but its contents.
        let fields: [usize; 13] = [
            inode as usize,
            mode as usize,
            0,
            0,
            1,
            0,
            data.len(),
            0,
            0,
            device.0 as usize,
            device.1 as usize,
            name.len() + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.record(0, "TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names, modes and data lengths, read back by the format's rules.
    fn read(mut bytes: &[u8]) -> Vec<(String, u32, usize)> {
        let mut entries = Vec::new();
        let start = bytes.as_ptr() as usize;
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |n: usize| {
                let text = std::str::from_utf8(&bytes[6 + 8 * n..14 + 8 * n]).unwrap();
                usize::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6), field(11));
            let name = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).unwrap();
            if name == "TRAILER!!!" {
                return entries;
            }
            entries.push((name, u32::try_from(mode).unwrap(), size));
            let data = (110 + name_size).next_multiple_of(4);
            bytes = &bytes[(data + size).next_multiple_of(4)..];
            assert_eq!((bytes.as_ptr() as usize - start) % 4, 0);
        }
    }

    #[test]
    fn the_archive_holds_what_the_kernel_needs() {
        let entries = read(&archive(b"12345"));
        let names: Vec<_> = entries.iter().map(|e| e.0.as_str()).collect();
        let want = [
            "dev",
            "proc",
            "sys",
            "run",
            "dev/console",
            "dev/null",
            "init",
        ];
        assert_eq!(names, want);
        assert_eq!(entries[6], ("init".to_owned(), 0o100_755, 5));
        assert_eq!(entries[4].1, 0o020_600);
    }

    #[test]
    fn the_same_binary_gives_the_same_bytes() {
        assert_eq!(archive(b"x"), archive(b"x"));
        assert_ne!(archive(b"x"), archive(b"y"));
    }
}
