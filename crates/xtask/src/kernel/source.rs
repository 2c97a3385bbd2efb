//! Where the kernel's source comes from: Debian's `linux-source-6.12` package,
//! or an archive from kernel.org that the user has and whose digest is listed in
//! `guest-kernel/sources.sha256`.

use super::key;
use crate::packages;
use crate::run::{checked, step};
use anyhow::{Context, bail};
use sha2::{Digest, Sha256};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Names an archive from kernel.org, to be used instead of Debian's package.
const ARCHIVE_VARIABLE: &str = "SPHERULE_KERNEL_TARBALL";
const PACKAGE: &str = "linux-source-6.12";
const PACKAGED: &str = "/usr/src/linux-source-6.12.tar.xz";
const LIST: &str = "sources.sha256";

/// An unmodified kernel source.
#[derive(Debug)]
pub(super) enum Source {
    /// Debian's package; apt has verified it.
    Debian {
        /// The package's version.
        version: String,
    },
    /// An archive of kernel.org with its listed digest.
    Archive {
        /// Where it lies.
        path: PathBuf,
        /// Its file name.
        name: String,
        /// What its SHA-256 must be.
        sha256: String,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Debian { version } => write!(f, "{PACKAGE} {version}"),
            Self::Archive { name, sha256, .. } => write!(f, "{name} {sha256}"),
        }
    }
}

/// Decides on the source; installs Debian's package where it is missing and
/// root runs us.
pub(super) fn find(inputs: &Path) -> anyhow::Result<Source> {
    if let Some(path) = std::env::var_os(ARCHIVE_VARIABLE) {
        return archive(PathBuf::from(path), &inputs.join(LIST));
    }
    if let Some(version) = package_version() {
        return Ok(Source::Debian { version });
    }
    let remedy = || {
        format!(
            "no kernel source: install Debian's {PACKAGE}, or set {ARCHIVE_VARIABLE} to a \
             linux-6.12.x.tar.xz of kernel.org that guest-kernel/{LIST} lists"
        )
    };
    packages::ensure(&[packages::KERNEL]).with_context(remedy)?;
    let version = package_version().with_context(remedy)?;
    Ok(Source::Debian { version })
}

fn package_version() -> Option<String> {
    let out = Command::new("dpkg-query")
        .args(["-W", "-f=${db:Status-Status} ${Version}", PACKAGE])
        .output()
        .ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    let version = text.strip_prefix("installed ")?;
    Path::new(PACKAGED).is_file().then(|| version.to_owned())
}

fn archive(path: PathBuf, list: &Path) -> anyhow::Result<Source> {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .with_context(|| format!("{ARCHIVE_VARIABLE} names no file: {}", path.display()))?
        .to_owned();
    let listed =
        fs::read_to_string(list).with_context(|| format!("cannot read {}", list.display()))?;
    let Some(sha256) = listed_digest(&listed, &name) else {
        bail!(
            "{} does not list {name}; add its line from kernel.org's signed sha256sums.asc",
            list.display()
        );
    };
    Ok(Source::Archive {
        path,
        sha256: sha256.to_owned(),
        name,
    })
}

/// The digest of a file in a list as `sha256sum` writes it.
fn listed_digest<'a>(list: &'a str, name: &str) -> Option<&'a str> {
    list.lines()
        .filter(|line| !line.starts_with('#'))
        .find_map(|line| {
            let (digest, file) = line.split_once("  ")?;
            (file == name && digest.len() == 64).then_some(digest)
        })
}

/// Our patches, in the order of their names.
pub(super) fn patches(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder)
        .and_then(Iterator::collect::<io::Result<Vec<_>>>)
        .with_context(|| format!("cannot read {}", folder.display()))?;
    let mut patches: Vec<PathBuf> = entries
        .into_iter()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "patch"))
        .collect();
    patches.sort();
    Ok(patches)
}

/// Unpacks and patches the source below `work`, unless that was done before.
/// Trees of other sources there are removed: each has over a gigabyte.
///
/// The tree stays, with its objects beside it, so that a changed option builds
/// only what it concerns.
pub(super) fn unpack(source: &Source, patches: &[PathBuf], work: &Path) -> anyhow::Result<PathBuf> {
    let mut parts = vec![source.to_string()];
    for patch in patches {
        parts.push(fs::read_to_string(patch)?);
    }
    let name = key::digest(&parts);
    let place = work.join(&name);
    let tree = place.join("linux");
    if tree.is_dir() {
        return Ok(tree);
    }
    if work.is_dir() {
        fs::remove_dir_all(work).with_context(|| format!("cannot clear {}", work.display()))?;
    }
    fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
    let archive = verified(source)?;
    step(&format!("unpacking {}", archive.display()));
    // Under its final name only once it is whole.
    let partial = place.join("linux.partial");
    fs::create_dir(&partial).with_context(|| format!("cannot make {}", partial.display()))?;
    checked(
        Command::new("tar")
            .args([
                "--extract",
                "--strip-components=1",
                "--no-same-owner",
                "--file",
            ])
            .arg(&archive)
            .arg("--directory")
            .arg(&partial),
    )?;
    for patch in patches {
        let input =
            File::open(patch).with_context(|| format!("cannot open {}", patch.display()))?;
        checked(
            Command::new("patch")
                .args([
                    "--strip=1",
                    "--forward",
                    "--batch",
                    "--silent",
                    "--directory",
                ])
                .arg(&partial)
                .stdin(input),
        )
        .with_context(|| format!("{} does not fit {source}", patch.display()))?;
    }
    fs::rename(&partial, &tree).with_context(|| format!("cannot make {}", tree.display()))?;
    Ok(tree)
}

/// The archive to unpack, its digest checked where nobody else has.
fn verified(source: &Source) -> anyhow::Result<PathBuf> {
    let Source::Archive { path, name, sha256 } = source else {
        return Ok(PathBuf::from(PACKAGED));
    };
    step(&format!("checking {name}"));
    let found = sha256_of(path).with_context(|| format!("cannot read {}", path.display()))?;
    if found != *sha256 {
        bail!(
            "{} is not the file that guest-kernel/{LIST} lists (SHA-256 {found}, listed \
             {sha256}): fetch it again",
            path.display()
        );
    }
    Ok(path.clone())
}

fn sha256_of(path: &Path) -> io::Result<String> {
    let (mut file, mut hash) = (File::open(path)?, Sha256::new());
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => hash.update(&buffer[..count]),
        }
    }
    Ok(hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn list(folder: &Path, line: &str) -> PathBuf {
        let list = folder.join(LIST);
        fs::write(&list, format!("# where from\n{line}\n")).unwrap();
        list
    }

    #[test]
    fn listed_archive_is_taken_and_an_altered_one_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("linux-6.12.1.tar.xz");
        let list = list(folder.path(), &format!("{EMPTY}  linux-6.12.1.tar.xz"));
        fs::write(&path, "").unwrap();
        let source = archive(path.clone(), &list).unwrap();
        assert_eq!(verified(&source).unwrap(), path);
        fs::write(&path, "altered").unwrap();
        let error = verified(&source).unwrap_err().to_string();
        assert!(error.contains(EMPTY), "{error}");
    }

    #[test]
    fn unlisted_archive_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let list = list(folder.path(), &format!("{EMPTY}  linux-6.12.1.tar.xz"));
        let error = archive(folder.path().join("linux-6.12.2.tar.xz"), &list).unwrap_err();
        assert!(error.to_string().contains("linux-6.12.2.tar.xz"), "{error}");
    }

    #[test]
    fn our_list_of_digests_is_well_formed() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let list = fs::read_to_string(root.join("guest-kernel").join(LIST)).unwrap();
        let lines: Vec<_> = list
            .lines()
            .filter(|l| !l.starts_with('#') && !l.is_empty())
            .collect();
        assert!(!lines.is_empty());
        for line in lines {
            let (digest, name) = line.split_once("  ").unwrap();
            assert_eq!(listed_digest(&list, name), Some(digest), "{line}");
            assert!(
                digest
                    .bytes()
                    .all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
            );
        }
    }

    #[test]
    fn source_is_unpacked_and_patched_once() {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path().join("linux-6.12.1");
        fs::create_dir(&top).unwrap();
        fs::write(top.join("Makefile"), "SUBLEVEL = 1\n").unwrap();
        let path = folder.path().join("linux-6.12.1.tar");
        checked(
            Command::new("tar")
                .arg("-cf")
                .arg(&path)
                .arg("-C")
                .arg(folder.path())
                .arg("linux-6.12.1"),
        )
        .unwrap();
        let patch = folder.path().join("1.patch");
        fs::write(
            &patch,
            "--- a/Makefile\n+++ b/Makefile\n@@ -1 +1 @@\n-SUBLEVEL = 1\n+SUBLEVEL = 2\n",
        )
        .unwrap();
        let sha256 = sha256_of(&path).unwrap();
        let source = Source::Archive {
            path,
            name: "linux-6.12.1.tar".to_owned(),
            sha256,
        };
        let work = folder.path().join("work");
        let patches = [patch];
        let tree = unpack(&source, &patches, &work).unwrap();
        assert_eq!(
            fs::read_to_string(tree.join("Makefile")).unwrap(),
            "SUBLEVEL = 2\n"
        );
        fs::write(tree.join("kept"), "").unwrap();
        let again = unpack(&source, &patches, &work).unwrap();
        assert!(again.join("kept").exists());
        // A patch that does not fit leaves no tree that looks whole.
        fs::write(
            &patches[0],
            "--- a/Makefile\n+++ b/Makefile\n@@ -1 +1 @@\n-other\n+text\n",
        )
        .unwrap();
        let error = unpack(&source, &patches, &work).unwrap_err();
        assert!(format!("{error:#}").contains("1.patch"), "{error:#}");
        assert!(unpack(&source, &patches, &work).is_err());
    }
}
