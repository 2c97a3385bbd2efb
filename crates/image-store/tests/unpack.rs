//! Trees of files packed by GNU tar in every format it has, imported, and the
//! image mounted by the kernel: it must show what was packed.
//!
//! Mounting needs root and loop devices; without them the tests say "skipped"
//! on standard error and only `fsck.erofs` judges, if it is installed.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    process::Command,
};

use image_store::{Config, Digest, Image, ImageStore};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags, lgetxattr, lsetxattr, utimensat};
use state_store::StateStore;

/// Small pseudo-random numbers, the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).unwrap()
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len)
            .map(|_| u8::try_from(self.below(256)).unwrap())
            .collect()
    }
}

/// Fills a directory with files of all kinds; with long names where the format
/// can express them. Without root there are no devices and one owner.
fn grow(root: &Path, seed: u64, long_names: bool) {
    let mut random = Random(seed);
    let mut dirs = vec![root.to_owned()];
    let mut files = Vec::new();
    for n in 0..120 {
        let dir = dirs[random.below(dirs.len())].clone();
        let pad = if long_names && random.below(6) == 0 {
            120 + random.below(80)
        } else {
            random.below(12)
        };
        let path = dir.join(format!("{n}-{}", "é".repeat(pad / 2)));
        match random.below(10) {
            0 | 1 => {
                fs::create_dir(&path).unwrap();
                dirs.push(path);
                continue;
            }
            2 => symlink(format!("../{}", "t".repeat(random.below(90))), &path).unwrap(),
            3 if !files.is_empty() => {
                let target: &PathBuf = &files[random.below(files.len())];
                fs::hard_link(target, &path).unwrap();
                continue;
            }
            4 => {
                // Holes at the start, in between and at the end.
                let file = File::create(&path).unwrap();
                let pieces = random.below(40);
                for piece in 0..pieces {
                    let at = 20_000 + piece as u64 * 70_000;
                    let len = random.below(6000);
                    file.write_all_at(&random.bytes(len), at).unwrap();
                }
                file.set_len(pieces as u64 * 70_000 + 50_000).unwrap();
                files.push(path.clone());
            }
            5 => rustix::fs::mknodat(CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0)
                .unwrap(),
            _ => {
                let len = random.below(3) * random.below(9000);
                fs::write(&path, random.bytes(len)).unwrap();
                files.push(path.clone());
            }
        }
        if !path.is_symlink() {
            let mode = [0o644, 0o755, 0o600, 0o4755, 0o2711, 0o000][random.below(6)];
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
    }
    if is_root() {
        let null = rustix::fs::makedev(1, 3);
        rustix::fs::mknodat(
            CWD,
            root.join("null"),
            rustix::fs::FileType::CharacterDevice,
            0o666.into(),
            null,
        )
        .unwrap();
        for (n, file) in files.iter().enumerate().step_by(3) {
            let id = u32::try_from(n).unwrap() * 1000;
            std::os::unix::fs::lchown(file, Some(id), Some(id + 1)).unwrap();
        }
    }
    for file in files.iter().step_by(4) {
        // Where the file system of the test has no attributes, none are compared.
        let _ = lsetxattr(
            file,
            "user.test",
            file.as_os_str().as_bytes(),
            XattrFlags::empty(),
        );
    }
    let mut all = vec![root.to_owned()];
    for index in 0.. {
        let Some(path) = all.get(index).cloned() else {
            break;
        };
        if path.is_dir() && !path.is_symlink() {
            all.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        }
    }
    for (n, path) in all.iter().enumerate() {
        let time = Timespec {
            tv_sec: 1_600_000_000 + i64::try_from(n).unwrap(),
            tv_nsec: 0,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

/// All that two trees must agree on.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    mode: u32,
    owner: (u32, u32),
    mtime: i64,
    device: u64,
    names: u64,
    size: u64,
    content: Option<Digest>,
    link: Option<PathBuf>,
    xattr: Option<Vec<u8>>,
}

fn survey(root: &Path, with_xattrs: bool) -> BTreeMap<PathBuf, Entry> {
    let mut entries = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let stat = fs::symlink_metadata(&path).unwrap();
            let kind = stat.file_type();
            let mut buffer = vec![0; 70_000];
            let xattr = if with_xattrs {
                lgetxattr(&path, "user.test", buffer.as_mut_slice()).ok()
            } else {
                None
            };
            let found = Entry {
                mode: stat.mode(),
                owner: (stat.uid(), stat.gid()),
                mtime: stat.mtime(),
                device: stat.rdev(),
                names: if kind.is_dir() { 0 } else { stat.nlink() },
                size: if kind.is_file() { stat.len() } else { 0 },
                content: kind
                    .is_file()
                    .then(|| Digest::of(&fs::read(&path).unwrap())),
                link: kind.is_symlink().then(|| fs::read_link(&path).unwrap()),
                xattr: xattr.map(|len| buffer[..len].to_vec()),
            };
            entries.insert(path.strip_prefix(root).unwrap().to_owned(), found);
            if kind.is_dir() {
                pending.push(path);
            }
        }
    }
    entries
}

struct Store {
    dir: tempfile::TempDir,
    store: ImageStore,
}

impl Store {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = StateStore::open(&dir.path().join("state.redb")).unwrap();
        let store = ImageStore::open(dir.path(), state, Config::default()).unwrap();
        Self { dir, store }
    }

    /// Imports layers as an archive of `docker save`.
    fn import(&self, layers: &[Vec<u8>]) -> Image {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer)).collect();
        let config = serde_json::json!({
            "architecture": architecture, "os": "linux", "rootfs": {"diff_ids": diff_ids},
        });
        let names: Vec<_> = (0..layers.len()).map(|n| format!("{n}.tar")).collect();
        let manifest = serde_json::json!([{"Config": "c.json", "RepoTags": null, "Layers": names}]);
        let mut builder = tar::Builder::new(Vec::new());
        let mut add = |name: &str, content: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, content).unwrap();
        };
        add("c.json", config.to_string().as_bytes());
        add("manifest.json", manifest.to_string().as_bytes());
        names
            .iter()
            .zip(layers)
            .for_each(|(name, layer)| add(name, layer));
        let archive = builder.into_inner().unwrap();
        self.store.import(&archive[..], None).unwrap().remove(0)
    }

    fn rootfs(&self, image: &Image) -> PathBuf {
        self.dir
            .path()
            .join(format!("images/erofs/{}.erofs", image.chain_id.hex()))
    }

    /// Runs `check` on the mounted image, if it can be mounted.
    fn mounted(&self, image: &Image, check: impl FnOnce(&Path)) {
        match Command::new("fsck.erofs")
            .args(["-d3", "--extract"])
            .arg(self.rootfs(image))
            .output()
        {
            Ok(output) => assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            ),
            Err(error) => eprintln!("skipped: fsck.erofs: {error}"),
        }
        let target = self.dir.path().join("mnt");
        fs::create_dir_all(&target).unwrap();
        let output = Command::new("mount")
            .args(["-t", "erofs", "-o", "ro,loop,nodev"])
            .arg(self.rootfs(image))
            .arg(&target)
            .output();
        let mounted = output.as_ref().is_ok_and(|output| output.status.success());
        if !mounted {
            eprintln!("skipped: the kernel's view: {output:?}");
            return;
        }
        let guard = Mounted(&target);
        check(&target);
        drop(guard);
    }
}

struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if !Command::new("umount")
            .arg("--lazy")
            .arg(self.0)
            .status()
            .is_ok_and(|status| status.success())
        {
            eprintln!("{} could not be unmounted", self.0.display());
        }
    }
}

fn pack(dir: &Path, options: &[&str]) -> Vec<u8> {
    let output = Command::new("tar")
        .args(options)
        .args(["--numeric-owner", "-C"])
        .arg(dir)
        .args(["-cf", "-", "."])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

#[test]
fn every_format_of_gnu_tar_gives_the_tree_back() {
    let formats: [(&[&str], bool); 9] = [
        (&["--format=v7"], false),
        (&["--format=ustar"], false),
        (&["--format=oldgnu"], true),
        (&["--format=gnu"], true),
        (&["--format=gnu", "--sparse"], true),
        (&["--format=posix", "--xattrs"], true),
        (
            &[
                "--format=posix",
                "--xattrs",
                "--sparse",
                "--sparse-version=0.0",
            ],
            true,
        ),
        (
            &[
                "--format=posix",
                "--xattrs",
                "--sparse",
                "--sparse-version=0.1",
            ],
            true,
        ),
        (
            &[
                "--format=posix",
                "--xattrs",
                "--sparse",
                "--sparse-version=1.0",
            ],
            true,
        ),
    ];
    for (seed, (options, long_names)) in formats.into_iter().enumerate() {
        let tree = tempfile::tempdir().unwrap();
        grow(tree.path(), seed as u64 * 7919 + 1, long_names);
        if options == ["--format=v7"] {
            // It has no devices and no fifos.
            remove_special(tree.path());
        }
        let with_xattrs = options.contains(&"--xattrs");
        let expected = survey(tree.path(), with_xattrs);
        let store = Store::new();
        let image = store.import(&[pack(tree.path(), options)]);
        store.mounted(&image, |root| {
            let found = survey(root, with_xattrs);
            for (path, entry) in &expected {
                assert_eq!(
                    found.get(path),
                    Some(entry),
                    "{options:?} {}",
                    path.display()
                );
            }
            assert_eq!(found.len(), expected.len(), "{options:?}");
        });
    }
}

fn remove_special(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            let stat = fs::metadata(&path).unwrap();
            remove_special(&path);
            let time = Timespec {
                tv_sec: stat.mtime(),
                tv_nsec: 0,
            };
            let times = Timestamps {
                last_access: time,
                last_modification: time,
            };
            utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        } else if !kind.is_file() && !kind.is_symlink() {
            fs::remove_file(&path).unwrap();
        }
    }
}

#[test]
fn layers_are_stacked_as_an_overlay_shows_them() {
    let lower = tempfile::tempdir().unwrap();
    let upper = tempfile::tempdir().unwrap();
    let write = |root: &Path, path: &str, content: &str| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    };
    for path in [
        "keep",
        "gone",
        "dir/a",
        "dir/b",
        "opaque/old",
        "file-to-dir",
        "dir-to-file/x",
        "changed",
    ] {
        write(lower.path(), path, "lower");
    }
    for path in [
        ".wh.gone",
        "dir/.wh.a",
        "opaque/.wh..wh..opq",
        "opaque/new",
        "file-to-dir/x",
        "dir-to-file",
        "changed",
    ] {
        write(upper.path(), path, "upper");
    }
    let store = Store::new();
    let image = store.import(&[pack(lower.path(), &[]), pack(upper.path(), &[])]);
    store.mounted(&image, |root| {
        let found: BTreeMap<_, _> = survey(root, false)
            .into_iter()
            .filter(|(_, entry)| entry.content.is_some())
            .map(|(path, entry)| (path, entry.content.unwrap() == Digest::of(b"upper")))
            .collect();
        let expected = [
            ("changed", true),
            ("dir-to-file", true),
            ("dir/b", false),
            ("file-to-dir/x", true),
            ("keep", false),
            ("opaque/new", true),
        ];
        let expected: BTreeMap<_, _> = expected
            .into_iter()
            .map(|(path, is_upper)| (PathBuf::from(path), is_upper))
            .collect();
        assert_eq!(found, expected);
    });
}
