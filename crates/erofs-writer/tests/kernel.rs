//! Images against the two judges: `fsck.erofs`, and the kernel that mounts them.
//!
//! The mount needs root and loop devices; where they are missing a test says
//! "skipped" on its standard error and checks the rest.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
    process::Command,
};

use erofs_writer::{Attributes, Builder, Limits, NodeKind, Options, Timestamp, Xattr};

fn path(text: &str) -> Vec<&[u8]> {
    text.split('/')
        .filter(|name| !name.is_empty())
        .map(str::as_bytes)
        .collect()
}

fn plain(permissions: u16) -> Attributes {
    let mtime = Timestamp {
        seconds: 1_700_000_000,
        nanoseconds: 0,
    };
    Attributes {
        permissions,
        mtime,
        ..Attributes::default()
    }
}

fn file(builder: &mut Builder, at: &str, attributes: Attributes, content: &[u8]) {
    let mut writer = builder.begin_file().unwrap();
    writer.append(content).unwrap();
    let data = writer.finish();
    builder.insert_file(&path(at), attributes, data).unwrap();
}

fn xattr(name: &str, value: &[u8]) -> Xattr {
    Xattr::new(name.as_bytes(), value).unwrap().unwrap()
}

struct Image {
    dir: tempfile::TempDir,
}

impl Image {
    fn build(fill: impl FnOnce(&mut Builder)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create_new(dir.path().join("image")).unwrap();
        let options = Options {
            uuid: [7; 16],
            limits: Limits::default(),
        };
        let mut builder = Builder::new(file, &options);
        fill(&mut builder);
        let summary = builder.finish().unwrap();
        assert_eq!(summary.file.metadata().unwrap().len(), summary.size_bytes);
        let image = Self { dir };
        // Version 1.5 crashes when it reads the contents of files this large.
        image.fsck(summary.data_bytes < 1 << 30);
        image
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    fn fsck(&self, contents: bool) {
        let options: &[_] = if contents {
            &["-d3", "--extract"]
        } else {
            &["-d3"]
        };
        match Command::new("fsck.erofs")
            .args(options)
            .arg(self.path())
            .output()
        {
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stdout).into_owned()
                    + &String::from_utf8_lossy(&output.stderr);
                assert!(
                    output.status.success(),
                    "fsck.erofs {}: {text}",
                    output.status
                );
                assert!(
                    text.to_lowercase().contains("no error"),
                    "fsck.erofs: {text}"
                );
            }
            Err(error) => eprintln!("skipped: fsck.erofs: {error}"),
        }
    }

    /// Runs `check` on the mounted image.
    fn mounted(&self, check: impl FnOnce(&Path)) {
        let target = self.dir.path().join("mnt");
        fs::create_dir(&target).unwrap();
        let mount = Command::new("mount")
            .args(["-t", "erofs", "-o", "ro,loop,nodev"])
            .arg(self.path())
            .arg(&target)
            .output();
        match mount {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stderr).into_owned();
                let denied = [
                    "permission",
                    "superuser",
                    "failed to setup loop",
                    "unknown filesystem",
                ];
                assert!(
                    denied.iter().any(|reason| text.contains(reason)),
                    "mount: {text}"
                );
                eprintln!("skipped: the kernel's view: {}", text.trim());
                return;
            }
            Err(error) => {
                eprintln!("skipped: the kernel's view: mount: {error}");
                return;
            }
        }
        let guard = Mounted(&target);
        check(&target);
        drop(guard);
    }
}

struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let status = Command::new("umount").arg("--lazy").arg(self.0).status();
        if !status.is_ok_and(|status| status.success()) {
            eprintln!("{} could not be unmounted", self.0.display());
        }
    }
}

fn listing(dir: &Path) -> Vec<Vec<u8>> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().as_bytes().to_vec())
        .collect();
    names.sort();
    names
}

#[test]
fn empty_image_is_valid() {
    Image::build(|_| {}).mounted(|root| {
        assert!(listing(root).is_empty());
        let stat = fs::metadata(root).unwrap();
        assert_eq!((stat.mode(), stat.nlink(), stat.uid()), (0o040_755, 2, 0));
    });
}

#[test]
fn every_kind_of_file_arrives() {
    let image = Image::build(|b| {
        file(b, "etc/passwd", plain(0o644), b"root:x:0:0::/:/bin/sh\n");
        file(
            b,
            "bin/su",
            Attributes {
                permissions: 0o4755,
                uid: 1,
                gid: 2,
                ..plain(0)
            },
            b"\x7fELF",
        );
        let big_ids = Attributes {
            uid: 3_000_000,
            gid: u32::MAX - 1,
            ..plain(0o600)
        };
        file(b, "big-ids", big_ids, b"");
        let mtime = Timestamp {
            seconds: 1,
            nanoseconds: 999_999_999,
        };
        file(
            b,
            "old",
            Attributes {
                mtime,
                ..plain(0o400)
            },
            b"x",
        );
        b.insert_symlink(&path("bin/sh"), plain(0), b"busybox")
            .unwrap();
        b.insert_symlink(&path("long-link"), plain(0), &[b'l'; 4095])
            .unwrap();
        b.insert_node(
            &path("dev/null"),
            plain(0o666),
            NodeKind::CharDevice { major: 1, minor: 3 },
        )
        .unwrap();
        let loop0 = NodeKind::BlockDevice {
            major: 7,
            minor: 300,
        };
        b.insert_node(&path("dev/loop"), plain(0o660), loop0)
            .unwrap();
        b.insert_node(&path("fifo"), plain(0o600), NodeKind::Fifo)
            .unwrap();
        b.insert_node(&path("socket"), plain(0o600), NodeKind::Socket)
            .unwrap();
        b.insert_hardlink(&path("etc/passwd-"), &path("etc/passwd"))
            .unwrap();
        b.insert_dir(&path("tmp"), plain(0o1777)).unwrap();
        b.insert_dir(&[], plain(0o711)).unwrap();
    });
    image.mounted(|root| {
        let stat = |name: &str| fs::symlink_metadata(root.join(name)).unwrap();
        assert_eq!(
            fs::read(root.join("etc/passwd")).unwrap(),
            b"root:x:0:0::/:/bin/sh\n"
        );
        assert_eq!(stat("etc/passwd").ino(), stat("etc/passwd-").ino());
        assert_eq!(stat("etc/passwd").nlink(), 2);
        assert_eq!(stat("etc/passwd").mtime(), 1_700_000_000);
        assert_eq!(stat("bin/su").mode(), 0o104_755);
        assert_eq!((stat("bin/su").uid(), stat("bin/su").gid()), (1, 2));
        assert_eq!(
            (stat("big-ids").uid(), stat("big-ids").gid()),
            (3_000_000, u32::MAX - 1)
        );
        assert_eq!(
            (stat("old").mtime(), stat("old").mtime_nsec()),
            (1, 999_999_999)
        );
        assert_eq!(
            fs::read_link(root.join("bin/sh")).unwrap(),
            Path::new("busybox")
        );
        let long = fs::read_link(root.join("long-link")).unwrap();
        assert_eq!(long.as_os_str().as_bytes(), [b'l'; 4095]);
        assert!(stat("dev/null").file_type().is_char_device());
        assert_eq!(stat("dev/null").rdev(), 0x103);
        assert!(stat("dev/loop").file_type().is_block_device());
        assert_eq!(
            stat("dev/loop").rdev(),
            7 << 8 | 300 & 0xff | (300 & !0xff) << 12
        );
        assert!(stat("fifo").file_type().is_fifo());
        assert!(stat("socket").file_type().is_socket());
        assert_eq!(stat("tmp").mode(), 0o041_777);
        assert_eq!((stat("").mode(), stat("").nlink()), (0o040_711, 2 + 4));
    });
}

#[test]
fn large_and_sparse_contents_read_back() {
    let big: Vec<u8> = (0..10_000_019_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let image = Image::build(|b| {
        file(b, "big", plain(0o644), &big);
        for len in [1, 4095, 4096, 4097, 8192] {
            file(b, &format!("f{len}"), plain(0o644), &big[..len]);
        }
        let mut writer = b.begin_file().unwrap();
        writer.append_zeros(5 << 30).unwrap();
        writer.append(b"end").unwrap();
        let data = writer.finish();
        b.insert_file(&path("sparse"), plain(0o644), data).unwrap();
        file(b, "replaced", plain(0o644), &big);
        file(b, "replaced", plain(0o644), b"new");
    });
    let on_disk = fs::metadata(image.path()).unwrap().blocks() * 512;
    assert!(on_disk < 11_000_000, "{on_disk} bytes on disk");
    image.mounted(|root| {
        assert!(fs::read(root.join("big")).unwrap() == big);
        for len in [1, 4095, 4096, 4097, 8192] {
            assert!(
                fs::read(root.join(format!("f{len}"))).unwrap() == big[..len],
                "{len}"
            );
        }
        let sparse = File::open(root.join("sparse")).unwrap();
        assert_eq!(sparse.metadata().unwrap().len(), (5 << 30) + 3);
        let mut end = [9; 7];
        sparse.read_exact_at(&mut end, (5 << 30) - 4).unwrap();
        assert_eq!(&end, b"\0\0\0\0end");
        assert_eq!(fs::read(root.join("replaced")).unwrap(), b"new");
    });
}

#[test]
fn directories_of_all_sizes_can_be_listed_and_searched() {
    // Names around the dots in order, and counts around the block's capacity.
    let odd = [
        "!",
        "-",
        ".a",
        "..b",
        "...",
        "/".trim_matches('/'),
        "a b",
        "ü",
        "~",
    ];
    let names = |count: usize| (0..count).map(move |n| format!("{}{n}", "n".repeat(n % 200)));
    let counts = [1, 20, 36, 37, 38, 39, 40, 100, 1000, 5000];
    let image = Image::build(|b| {
        for name in odd.iter().filter(|name| !name.is_empty()) {
            b.insert_node(&[b"odd", name.as_bytes()], plain(0o600), NodeKind::Fifo)
                .unwrap();
        }
        for count in counts {
            for name in names(count) {
                let at = format!("d{count}/{name}");
                b.insert_symlink(&path(&at), plain(0), name.as_bytes())
                    .unwrap();
            }
        }
    });
    image.mounted(|root| {
        for name in odd.iter().filter(|name| !name.is_empty()) {
            assert!(
                fs::symlink_metadata(root.join("odd").join(name)).is_ok(),
                "{name}"
            );
        }
        for count in counts {
            let dir = root.join(format!("d{count}"));
            let mut expected: Vec<_> = names(count).map(String::into_bytes).collect();
            expected.sort();
            assert!(listing(&dir) == expected, "{count} names");
            for name in names(count) {
                assert_eq!(fs::read_link(dir.join(&name)).unwrap(), Path::new(&name));
            }
            let (own, parent) = (dir.join("."), dir.join(".."));
            assert_eq!(
                fs::metadata(own).unwrap().ino(),
                fs::metadata(&dir).unwrap().ino()
            );
            assert_eq!(
                fs::metadata(parent).unwrap().ino(),
                fs::metadata(root).unwrap().ino()
            );
        }
    });
}

fn getfattr(file: &Path, name: &str) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 70_000];
    let name = OsStr::new(name);
    let len = rustix::fs::lgetxattr(file, name, buffer.as_mut_slice()).ok()?;
    buffer.truncate(len);
    Some(buffer)
}

#[test]
fn extended_attributes_arrive_shared_or_not() {
    let acl = [
        2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 4, 0, 4, 0, 255, 255, 255, 255, 32, 0, 4, 0,
        255, 255, 255, 255,
    ];
    let long = vec![b'v'; 65_535];
    let caps = xattr(
        "security.capability",
        &[1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    );
    let image = Image::build(|b| {
        for n in 0..3 {
            let xattrs = vec![caps.clone(), xattr("user.own", format!("{n}").as_bytes())];
            file(
                b,
                &format!("shared{n}"),
                Attributes {
                    xattrs,
                    ..plain(0o755)
                },
                b"x",
            );
        }
        let xattrs = vec![
            xattr("user.long", &long),
            xattr("user.longer", &long),
            xattr("user.empty", b""),
            xattr("user.twice", b"first"),
            xattr("user.twice", b"second"),
        ];
        file(
            b,
            "long",
            Attributes {
                xattrs,
                ..plain(0o644)
            },
            b"x",
        );
        let xattrs = vec![
            xattr("system.posix_acl_access", &acl),
            xattr("trusted.t", b"t"),
        ];
        file(
            b,
            "acl",
            Attributes {
                xattrs: xattrs.clone(),
                ..plain(0o644)
            },
            b"x",
        );
        b.insert_dir(
            &path("dir"),
            Attributes {
                xattrs,
                ..plain(0o755)
            },
        )
        .unwrap();
        b.insert_symlink(
            &path("dir/link"),
            Attributes {
                xattrs: vec![caps.clone()],
                ..plain(0)
            },
            b"t",
        )
        .unwrap();
    });
    image.mounted(|root| {
        for n in 0..3 {
            let file = root.join(format!("shared{n}"));
            assert_eq!(
                getfattr(&file, "user.own").unwrap(),
                format!("{n}").as_bytes()
            );
            assert!(getfattr(&file, "security.capability").is_some());
        }
        assert!(getfattr(&root.join("long"), "user.long").unwrap() == long);
        assert!(getfattr(&root.join("long"), "user.longer").unwrap() == long);
        assert_eq!(getfattr(&root.join("long"), "user.empty").unwrap(), b"");
        assert_eq!(
            getfattr(&root.join("long"), "user.twice").unwrap(),
            b"second"
        );
        assert_eq!(getfattr(&root.join("dir"), "trusted.t").unwrap(), b"t");
        assert_eq!(
            getfattr(&root.join("acl"), "system.posix_acl_access").unwrap(),
            acl
        );
        assert_eq!(fs::read(root.join("acl")).unwrap(), b"x");
        assert_eq!(
            fs::read_link(root.join("dir/link")).unwrap(),
            Path::new("t")
        );
    });
}

#[test]
fn same_calls_give_the_same_bytes() {
    let build = || {
        Image::build(|b| {
            for n in 0..500 {
                let xattrs = vec![xattr("user.n", format!("{}", n % 7).as_bytes())];
                let mtime = Timestamp {
                    seconds: n % 5,
                    nanoseconds: 0,
                };
                file(
                    b,
                    &format!("d{}/f{n}", n % 11),
                    Attributes {
                        xattrs,
                        mtime,
                        ..plain(0o644)
                    },
                    b"x",
                );
            }
            b.begin_layer();
            b.whiteout(&path("d3")).unwrap();
        })
    };
    assert!(fs::read(build().path()).unwrap() == fs::read(build().path()).unwrap());
}

#[test]
fn unfinished_image_has_no_superblock() {
    let dir = tempfile::tempdir().unwrap();
    let name = dir.path().join("image");
    let mut builder = Builder::new(File::create_new(&name).unwrap(), &Options::default());
    file(&mut builder, "a", plain(0o644), &[1; 3 << 20]);
    drop(builder);
    let bytes = fs::read(name).unwrap();
    assert!(bytes.len() < 1024 || bytes[1024..1028] == [0; 4]);
}
