//! Each known trick to leave a directory of the host, tried by root with all rights
//! in the guest. Whether something changed outside is for the host to say; what was
//! read is looked at here.

use super::handles;
use super::posix::fails;
use anyhow::{Context, bail, ensure};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, linkat, makedev, mknodat, openat,
    renameat_with,
};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How often two names change places while they are used.
const RACES: usize = 300;
/// Handles that are tried: nodes are numbered from 1 on.
const HANDLES: u64 = 200;
/// What names outside lie at, seen from within a share.
const OUTSIDE: &[&str] = &["outside/f", "secret", "second/../secret", "made"];

struct Guest {
    share: PathBuf,
    /// A share of another directory.
    second: PathBuf,
    /// What only files outside hold.
    secret: String,
}

type Trick = (&'static str, fn(&Guest) -> anyhow::Result<()>);

const TRICKS: &[Trick] = &[
    ("dots", dots),
    ("links", links),
    ("attributes of links", attributes_of_links),
    ("races", races),
    ("another share", another_share),
    ("handles", forged_handles),
    ("devices", devices),
    ("magic links", magic_links),
    ("changed directory", changed_directory),
    ("mounted again", mounted_again),
    ("moved by the guest", moved_by_guest),
    ("moved by the host", moved_by_host),
];

/// `SHARE SECOND SECRET`
pub(super) fn run(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let mut next = || arguments.next().context("SHARE SECOND SECRET");
    let guest = Guest {
        share: next()?.into(),
        second: next()?.into(),
        secret: next()?,
    };
    for (name, trick) in TRICKS {
        trick(&guest).with_context(|| (*name).to_owned())?;
    }
    // For another container, which has it as a part of the share.
    symlink("../outside", guest.share.join("planted"))?;
    println!("{} tricks tried", TRICKS.len());
    Ok(())
}

impl Guest {
    /// Tries to read, make, change and remove what lies at a path; nothing of it
    /// may be the host's.
    fn abuse(&self, dir: BorrowedFd<'_>, path: &Path) -> anyhow::Result<()> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        if let Ok(file) = openat(dir, path, flags, Mode::empty()) {
            let mut found = Vec::new();
            let _ = File::from(file).take(4096).read_to_end(&mut found);
            let found = String::from_utf8_lossy(&found).into_owned();
            ensure!(!found.contains(&self.secret), "{} was read", path.display());
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NONBLOCK | OFlags::CLOEXEC;
        if let Ok(file) = openat(dir, path, flags, Mode::RWXU) {
            let _ = File::from(file).write_all(b"by the guest");
        }
        let _ = rustix::fs::chmodat(dir, path, Mode::RWXU, AtFlags::empty());
        let _ = rustix::fs::unlinkat(dir, path, AtFlags::empty());
        Ok(())
    }

    /// All names that lie outside, from so many directories further up.
    fn abuse_above(&self, dir: BorrowedFd<'_>) -> anyhow::Result<()> {
        for depth in 0..6 {
            for name in OUTSIDE {
                let path = Path::new(&"../".repeat(depth)).join(name);
                // Its own root's files are the guest's to lose.
                self.abuse(dir, &path)?;
            }
        }
        Ok(())
    }

    /// An empty directory for a trick.
    fn dir(&self, name: &str) -> anyhow::Result<PathBuf> {
        let dir = self.share.join(name);
        fs::create_dir(&dir)?;
        Ok(dir)
    }
}

fn path_fd(path: &Path) -> anyhow::Result<std::os::fd::OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

fn dots(guest: &Guest) -> anyhow::Result<()> {
    let deep = guest.dir("dots")?.join("a");
    fs::create_dir(&deep)?;
    for dir in [&guest.share, &deep] {
        guest.abuse_above(path_fd(dir)?.as_fd())?;
    }
    Ok(())
}

fn links(guest: &Guest) -> anyhow::Result<()> {
    let dir = guest.dir("links")?;
    for (number, target) in [
        "..",
        "../..",
        "../../outside",
        "../../outside/f",
        "../../secret",
        "/",
        "/proc/1/root",
    ]
    .iter()
    .enumerate()
    {
        let link = dir.join(number.to_string());
        symlink(target, &link)?;
        let fd = path_fd(&dir)?;
        guest.abuse(fd.as_fd(), Path::new(&number.to_string()))?;
        // Removed by name above, if it was no directory.
        let _ = symlink(target, &link);
        for name in OUTSIDE {
            guest.abuse(fd.as_fd(), &Path::new(&number.to_string()).join(name))?;
        }
    }
    Ok(())
}

/// Calls that are about a link itself, so that its node is what the host is asked
/// about: it must not be what the link says there.
fn attributes_of_links(guest: &Guest) -> anyhow::Result<()> {
    let dir = guest.dir("attributes")?;
    for target in ["../../outside/f", "../../outside", "../../secret"] {
        let link = dir.join("link");
        symlink(target, &link)?;
        let owner = Some(rustix::fs::Uid::from_raw(7));
        let _ = rustix::fs::chownat(CWD, &link, owner, None, AtFlags::SYMLINK_NOFOLLOW);
        let times = rustix::fs::Timestamps {
            last_access: rustix::fs::Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            },
            last_modification: rustix::fs::Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            },
        };
        let _ = rustix::fs::utimensat(CWD, &link, &times, AtFlags::SYMLINK_NOFOLLOW);
        for name in ["user.a", "trusted.a", "security.capability"] {
            let flags = rustix::fs::XattrFlags::empty();
            let _ = rustix::fs::lsetxattr(&link, name, b"x", flags);
        }
        let fd = rustix::fs::open(&link, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())?;
        let magic = format!("/proc/self/fd/{}", fd.as_raw_fd());
        guest.abuse(CWD, Path::new(&magic))?;
        let _ = fs::set_permissions(&magic, fs::Permissions::from_mode(0o777));
        // A second name of the link is a link, too.
        let flags = AtFlags::empty();
        linkat(CWD, &link, CWD, dir.join("again"), flags)?;
        ensure!(fs::read_link(dir.join("again"))? == Path::new(target));
        fs::remove_file(dir.join("again"))?;
        fs::remove_file(link)?;
    }
    Ok(())
}

/// A directory and a link that leads out change places while names beneath are used.
fn races(guest: &Guest) -> anyhow::Result<()> {
    let dir = guest.dir("races")?;
    let (place, link) = (dir.join("place"), dir.join("link"));
    fs::create_dir(&place)?;
    fs::write(place.join("f"), "mine")?;
    symlink("../../outside", &link)?;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..RACES {
                let _ = renameat_with(CWD, &place, CWD, &link, RenameFlags::EXCHANGE);
            }
        });
        for _ in 0..RACES {
            for name in ["f", "made", "../../secret"] {
                guest.abuse(CWD, &place.join(name))?;
            }
        }
        Ok(())
    })
}

fn another_share(guest: &Guest) -> anyhow::Result<()> {
    let dir = guest.dir("another")?;
    let file = dir.join("f");
    fs::write(&file, "of the first")?;
    let there = guest.second.join("f");
    fails(fs::hard_link(&file, &there), Errno::XDEV)?;
    fails(fs::rename(&file, &there), Errno::XDEV)?;
    fails(fs::rename(&dir, guest.second.join("d")), Errno::XDEV)?;
    ensure!(!there.exists() && file.exists());
    Ok(())
}

fn forged_handles(guest: &Guest) -> anyhow::Result<()> {
    let share = File::open(&guest.share)?;
    for inode in (0..HANDLES).chain([u64::MAX, 1 << 32]) {
        for flags in [OFlags::RDONLY, OFlags::PATH] {
            let flags = (flags | OFlags::NONBLOCK).bits().cast_signed();
            let Ok(file) = handles::open(share.as_fd(), inode, flags) else {
                continue;
            };
            guest.abuse_above(file.as_fd())?;
            let mut found = String::new();
            let _ = File::from(file).take(4096).read_to_string(&mut found);
            ensure!(!found.contains(&guest.secret), "inode {inode} was read");
        }
    }
    Ok(())
}

/// No node of a device is made on the host, whatever its number.
fn devices(guest: &Guest) -> anyhow::Result<()> {
    let dir = guest.dir("devices")?;
    for kind in [FileType::BlockDevice, FileType::CharacterDevice] {
        for (major, minor) in [(1, 1), (1, 3), (7, 0), (8, 0), (10, 232), (254, 0)] {
            let device = makedev(major, minor);
            let made = mknodat(CWD, dir.join("device"), kind, Mode::RWXU, device);
            fails(made, Errno::PERM)?;
        }
    }
    // A whiteout is a device, too.
    fs::write(dir.join("f"), "")?;
    let (from, to) = (dir.join("f"), dir.join("g"));
    if renameat_with(CWD, &from, CWD, &to, RenameFlags::WHITEOUT).is_ok() {
        bail!("a whiteout was left");
    }
    Ok(())
}

fn magic_links(guest: &Guest) -> anyhow::Result<()> {
    let dir = guest.dir("magic")?;
    let (fd, file) = (path_fd(&dir)?, dir.join("f"));
    fs::write(&file, "mine")?;
    let open = File::open(&file)?;
    fs::remove_file(&file)?;
    for number in [fd.as_raw_fd(), open.as_raw_fd()] {
        let magic = PathBuf::from(format!("/proc/self/fd/{number}"));
        for name in ["", "..", "../../secret", "../../outside/f"] {
            guest.abuse(CWD, &magic.join(name))?;
        }
        // A link in the share that leads to it.
        symlink(&magic, dir.join("link"))?;
        guest.abuse(fd.as_fd(), Path::new("link/../../secret"))?;
        fs::remove_file(dir.join("link"))?;
    }
    // The file without names gets none elsewhere.
    let again = format!("/proc/self/fd/{}", open.as_raw_fd());
    let there = guest.second.join("unnamed");
    let linked = linkat(CWD, &again, CWD, &there, AtFlags::SYMLINK_FOLLOW);
    ensure!(linked.is_err() && !there.exists());
    Ok(())
}

fn changed_directory(guest: &Guest) -> anyhow::Result<()> {
    let before = path_fd(Path::new("."))?;
    rustix::process::fchdir(path_fd(&guest.share)?)?;
    let mut tried = guest.abuse_above(CWD);
    for _ in 0..4 {
        std::env::set_current_dir("..")?;
        for name in OUTSIDE {
            tried = tried.and(guest.abuse(CWD, Path::new(name)));
        }
    }
    rustix::process::fchdir(before)?;
    tried
}

/// The device once more, as a whole: its root lists the shares and nothing else.
fn mounted_again(guest: &Guest) -> anyhow::Result<()> {
    let top = Path::new("/again");
    fs::create_dir_all(top)?;
    let mount = Command::new("/bin/busybox")
        .args(["mount", "-t", "virtiofs", "shares", "/again"])
        .output()?;
    ensure!(mount.status.success(), "{mount:?}");
    let fd = path_fd(top)?;
    guest.abuse_above(fd.as_fd())?;
    let shares: Vec<PathBuf> = fs::read_dir(top)?
        .map(|entry| Ok(entry?.path()))
        .collect::<anyhow::Result<_>>()?;
    ensure!(shares.len() > 1, "{shares:?}");
    for share in shares.iter().filter(|share| share.is_dir()) {
        guest.abuse_above(path_fd(share)?.as_fd())?;
    }
    // On one mount, so that it is the host that is asked.
    let find = |name: &str| {
        let mut at = shares.iter().map(|share| share.join(name));
        at.find(|path| path.exists()).context(name.to_owned())
    };
    let (file, second) = (find("another/f")?, find("is-second")?);
    let there = second.with_file_name("f");
    fails(fs::hard_link(&file, &there), Errno::XDEV)?;
    fails(fs::rename(&file, &there), Errno::XDEV)?;
    for change in [fs::write(top.join("f"), ""), fs::create_dir(top.join("d"))] {
        ensure!(change.is_err(), "the root of all was changed");
    }
    rustix::process::chdir("/")?;
    Ok(())
}

/// A directory that is open changes its place, so that ".." is another one.
fn moved_by_guest(guest: &Guest) -> anyhow::Result<()> {
    let dir = guest.dir("moving")?;
    let deep = dir.join("a/b/c");
    fs::create_dir_all(&deep)?;
    let fd = path_fd(&deep)?;
    fs::rename(&deep, guest.share.join("up"))?;
    guest.abuse_above(fd.as_fd())?;
    fs::rename(guest.share.join("up"), &deep)?;
    guest.abuse_above(fd.as_fd())
}

/// The host moves a directory out of the share while this process is in it. What
/// is in it stays within reach, what is above does not come into it.
fn moved_by_host(guest: &Guest) -> anyhow::Result<()> {
    let dir = guest.dir("moved")?;
    fs::create_dir_all(dir.join("a"))?;
    let (fd, below) = (path_fd(&dir)?, path_fd(&dir.join("a"))?);
    std::env::set_current_dir(dir.join("a"))?;
    fs::write(guest.share.join("ready"), "")?;
    // Only a test that fails waits for long.
    for _ in 0..6000 {
        if guest.share.join("go").exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    ensure!(!dir.exists(), "it was not moved");
    for dir in [fd.as_fd(), below.as_fd(), CWD] {
        guest.abuse_above(dir)?;
    }
    std::env::set_current_dir("/")?;
    Ok(())
}
