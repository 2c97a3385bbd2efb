//! What this program does in a container, where tests run it: system calls that
//! busybox has no command for. `functional --inside WHAT FILE...`.

mod escape;
mod fsx;
mod handles;
mod mapped;
mod posix;

pub(crate) use fsx::checksum;

use anyhow::{bail, ensure};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::fs::{FlockOperation, OFlags, XattrFlags};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions};
use std::mem::MaybeUninit;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The program's first argument there.
pub(crate) const INSIDE: &str = "--inside";

/// The files that this program consists of, and where they belong in a container:
/// the program is `/t/test` there.
pub(crate) fn program_files() -> anyhow::Result<Vec<(PathBuf, String)>> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let mut libraries: Vec<&str> = maps
        .lines()
        .filter_map(|line| line.find('/').map(|at| &line[at..]))
        .filter(|path| path.contains(".so"))
        .collect();
    libraries.sort_unstable();
    libraries.dedup();
    // The loader by the name that programs have, a link.
    libraries.push("/lib64/ld-linux-x86-64.so.2");
    let mut files = vec![(std::env::current_exe()?, "/t/test".to_owned())];
    files.extend(
        libraries
            .iter()
            .map(|path| (PathBuf::from(path), (*path).to_owned())),
    );
    Ok(files)
}

/// Does what the arguments after [`INSIDE`] say.
pub(crate) fn run(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let what = arguments.next().unwrap_or_default();
    match what.as_str() {
        "posix" => return posix::run(arguments),
        "fsx" => return fsx::run(arguments),
        "escape" => return escape::run(arguments),
        _ => {}
    }
    let file = PathBuf::from(arguments.next().unwrap_or_default());
    match what.as_str() {
        "hold" => hold(&file),
        "try" => try_locks(&file),
        "direct" => direct(&file),
        "attributes" => attributes(&file),
        "watch" => watch(&file),
        _ => bail!("{what:?} is nothing to do"),
    }
}

fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Locks a file by POSIX, another by flock(2), and keeps both.
fn hold(file: &Path) -> anyhow::Result<()> {
    let (posix, whole) = (File::create(file)?, File::create(beside(file, ".flock"))?);
    rustix::fs::fcntl_lock(&posix, FlockOperation::NonBlockingLockExclusive)?;
    rustix::fs::flock(&whole, FlockOperation::NonBlockingLockExclusive)?;
    File::create(beside(file, ".held"))?;
    loop {
        std::thread::sleep(Duration::from_secs(1000));
    }
}

/// Neither lock that another process holds can be had, even to read.
fn try_locks(file: &Path) -> anyhow::Result<()> {
    let (posix, whole) = (File::open(file)?, File::open(beside(file, ".flock"))?);
    let shared = FlockOperation::NonBlockingLockShared;
    let refused = [
        rustix::fs::fcntl_lock(&posix, shared),
        rustix::fs::flock(&whole, shared),
    ];
    ensure!(refused == [Err(Errno::AGAIN); 2], "{refused:?}");
    Ok(())
}

/// A page of the alignment that O_DIRECT may want.
#[repr(align(4096))]
struct Page([u8; 4096]);

fn direct(file: &Path) -> anyhow::Result<()> {
    let flags = OFlags::DIRECT.bits().cast_signed();
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true);
    let file = options.custom_flags(flags).open(file)?;
    file.write_all_at(&Page([b'x'; 4096]).0, 4096)?;
    let mut page = Page([1; 4096]);
    file.read_exact_at(&mut page.0, 0)?;
    ensure!(page.0.iter().all(|byte| *byte == 0));
    file.read_exact_at(&mut page.0, 4096)?;
    ensure!(page.0.iter().all(|byte| *byte == b'x'));
    file.sync_all()?;
    Ok(file.sync_data()?)
}

fn attributes(file: &Path) -> anyhow::Result<()> {
    fs::write(file, "")?;
    rustix::fs::setxattr(file, "user.a", b"one", XattrFlags::CREATE)?;
    let again = rustix::fs::setxattr(file, "user.a", b"two", XattrFlags::CREATE);
    ensure!(again == Err(Errno::EXIST), "{again:?}");
    let mut value = [0; 16];
    let len = rustix::fs::getxattr(file, "user.a", &mut value[..])?;
    ensure!(value[..len] == *b"one");
    let len = rustix::fs::listxattr(file, &mut value[..])?;
    ensure!(value[..len] == *b"user.a\0");
    rustix::fs::removexattr(file, "user.a")?;
    let gone = rustix::fs::getxattr(file, "user.a", &mut value[..]);
    ensure!(gone == Err(Errno::NODATA), "{gone:?}");
    rustix::fs::setxattr(file, "user.kept", b"kept", XattrFlags::empty())?;
    Ok(())
}

/// What is done to a file is told to who watches it and who watches its directory.
fn watch(file: &Path) -> anyhow::Result<()> {
    let watcher = inotify::init(CreateFlags::NONBLOCK)?;
    let wanted = WatchFlags::CREATE
        | WatchFlags::MODIFY
        | WatchFlags::CLOSE_WRITE
        | WatchFlags::MOVED_FROM
        | WatchFlags::MOVED_TO
        | WatchFlags::DELETE;
    let parent = file.parent().unwrap_or(file);
    let on_dir = inotify::add_watch(&watcher, parent, wanted)?;
    fs::write(file, "")?;
    let of_file = WatchFlags::MODIFY | WatchFlags::DELETE_SELF;
    let on_file = inotify::add_watch(&watcher, file, of_file)?;
    fs::write(file, "text")?;
    let moved = beside(file, ".moved");
    fs::rename(file, &moved)?;
    fs::remove_file(&moved)?;
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = Reader::new(&watcher, &mut buffer);
    let (mut dir, mut own) = (ReadFlags::empty(), ReadFlags::empty());
    loop {
        match reader.next() {
            Ok(event) if event.wd() == on_dir => dir |= event.events(),
            Ok(event) if event.wd() == on_file => own |= event.events(),
            Ok(_) => {}
            Err(Errno::AGAIN) => break,
            Err(error) => return Err(error.into()),
        }
    }
    ensure!(dir.bits() & wanted.bits() == wanted.bits(), "{dir:?}");
    ensure!(own.bits() & of_file.bits() == of_file.bits(), "{own:?}");
    Ok(())
}
