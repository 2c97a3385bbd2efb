//! What POSIX (IEEE Std 1003.1) promises about files and directories, and Linux
//! where it says more: a table of operations, each tried in an empty directory of
//! its own on the file system under test.

use anyhow::{Context, bail, ensure};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, UTIME_NOW,
    UTIME_OMIT, Uid, renameat_with,
};
use rustix::io::Errno;
use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// An operation: what is promised, and the check in a directory.
type Check = (&'static str, fn(&Path) -> anyhow::Result<()>);

const CHECKS: &[Check] = &[
    ("a file that is there is not created exclusively", exclusive),
    ("paths that lead nowhere say why", wrong_paths),
    ("names have up to 255 bytes", long_names),
    ("directories and links are not opened as files", wrong_kinds),
    ("a mode is what was asked for less the umask", modes),
    ("a file without names lives while it is open", unlinked),
    ("directories go only when they are empty", rmdir),
    ("rename replaces what it may replace", rename),
    (
        "rename of two links of one file changes nothing",
        rename_links,
    ),
    ("rename can refuse to replace, and exchange", rename_flags),
    ("an open file follows its renamed directory", renamed_parent),
    ("hard links are one file", links),
    ("symbolic links are followed where they should be", symlinks),
    ("truncation cuts and fills with zeroes", truncation),
    ("appended bytes go to the end, wherever it is", appending),
    ("what lies behind the end reads as zeroes", holes),
    ("two descriptors see one content", two_descriptors),
    ("an offset belongs to the open file description", offsets),
    ("a closed descriptor's data stays", persistence),
    ("times change with what they are about", times),
    ("times can be set", set_times),
    ("owners change set-id bits", owners),
    (
        "pipes and sockets are names of the guest's own",
        special_files,
    ),
    ("directories list all that is in them once", listing),
    ("a directory that is read may change", changing_listing),
    ("space can be reserved and punched out", allocation),
    ("a mapping and the file are one", mapping),
    ("bytes are copied within the file system", copying),
    ("the file system tells its size", size),
];

/// What only a process without rights can find out.
const AS_USER: &[Check] = &[
    ("permission bits bind a user", permission),
    ("a sticky directory keeps others' files", sticky),
    ("a write by a user takes set-id bits away", set_id),
    ("a user gives no file away", giving_away),
];

/// Tries everything beneath each of `directories`; all that fails is told at the
/// end.
pub(super) fn run(directories: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let is_root = rustix::process::geteuid().is_root();
    let mut failures = Vec::new();
    let mut tried = 0;
    for directory in directories {
        let top = Path::new(&directory).join(if is_root { "as-root" } else { "as-user" });
        fs::create_dir(&top).with_context(|| format!("in {directory}"))?;
        if is_root {
            leave_something(&Path::new(&directory).join(OF_ROOT))?;
        }
        let checks = CHECKS.iter().chain(if is_root { &[] } else { AS_USER });
        for (number, (name, check)) in checks.enumerate() {
            let dir = top.join(number.to_string());
            fs::create_dir(&dir)?;
            tried += 1;
            if let Err(error) = check(&dir) {
                failures.push(format!("{directory}: {name}: {error:#}"));
            }
        }
        // All of it can be removed again.
        if let Err(error) = fs::remove_dir_all(&top) {
            failures.push(format!("{directory}: removal: {error}"));
        }
    }
    if !failures.is_empty() {
        bail!("{} of {tried}:\n{}", failures.len(), failures.join("\n"));
    }
    println!("{tried} POSIX checks passed");
    Ok(())
}

/// What statfs(2) calls XFS.
const XFS: rustix::fs::FsWord = 0x5846_5342;

/// Where root leaves something that a user may not touch.
const OF_ROOT: &str = "of-root";

fn leave_something(sticky: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(sticky.join("d"))?;
    Ok(fs::set_permissions(
        sticky,
        fs::Permissions::from_mode(0o1777),
    )?)
}

/// The call must fail in that way.
pub(super) fn fails<T: Debug>(
    result: Result<T, impl Into<std::io::Error>>,
    errno: Errno,
) -> anyhow::Result<()> {
    match result {
        Ok(value) => bail!("{value:?} instead of {errno}"),
        Err(error) => {
            let error = error.into();
            ensure!(
                error.raw_os_error() == Some(errno.raw_os_error()),
                "{error} instead of {errno}"
            );
            Ok(())
        }
    }
}

fn open(path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::from_raw_mode(0o644))
}

fn read_write(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

fn exclusive(dir: &Path) -> anyhow::Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
    open(&dir.join("f"), flags)?;
    fails(open(&dir.join("f"), flags), Errno::EXIST)?;
    // A link is there, whether or not it leads to something.
    symlink("nowhere", dir.join("l"))?;
    fails(open(&dir.join("l"), flags), Errno::EXIST)?;
    fails(fs::create_dir(dir.join("l")), Errno::EXIST)?;
    fails(fs::create_dir(dir.join("f")), Errno::EXIST)?;
    ensure!(!dir.join("nowhere").exists());
    // Without O_EXCL the file at the end of the link is made.
    open(&dir.join("l"), OFlags::CREATE | OFlags::WRONLY)?;
    ensure!(dir.join("nowhere").is_file());
    Ok(())
}

fn wrong_paths(dir: &Path) -> anyhow::Result<()> {
    fs::write(dir.join("f"), "x")?;
    fails(File::open(dir.join("none")), Errno::NOENT)?;
    fails(File::open(dir.join("none/f")), Errno::NOENT)?;
    fails(File::open(dir.join("f/g")), Errno::NOTDIR)?;
    fails(fs::metadata(dir.join("f/")), Errno::NOTDIR)?;
    fails(fs::remove_file(dir.join("none")), Errno::NOENT)?;
    fails(fs::rename(dir.join("none"), dir.join("g")), Errno::NOENT)?;
    fails(File::open(""), Errno::NOENT)
}

fn long_names(dir: &Path) -> anyhow::Result<()> {
    let longest = "n".repeat(255);
    fs::write(dir.join(&longest), "x")?;
    ensure!(fs::read_dir(dir)?.next().context("an entry")??.file_name() == *longest);
    fs::remove_file(dir.join(&longest))?;
    let longer = dir.join("n".repeat(256));
    fails(File::create(&longer), Errno::NAMETOOLONG)?;
    fails(fs::metadata(&longer), Errno::NAMETOOLONG)?;
    // Any byte but '/' and NUL.
    for name in ["...", " ", "\n", "\u{7f}", "\\", "ü"] {
        fs::write(dir.join(name), name)?;
        ensure!(fs::read_to_string(dir.join(name))? == name);
    }
    Ok(())
}

fn wrong_kinds(dir: &Path) -> anyhow::Result<()> {
    let (sub, file, link) = (dir.join("d"), dir.join("f"), dir.join("l"));
    fs::create_dir(&sub)?;
    fs::write(&file, "x")?;
    symlink("f", &link)?;
    fails(open(&sub, OFlags::WRONLY), Errno::ISDIR)?;
    fails(open(&sub, OFlags::RDWR), Errno::ISDIR)?;
    fails(open(&sub, OFlags::CREATE), Errno::ISDIR)?;
    fails(open(&file, OFlags::DIRECTORY), Errno::NOTDIR)?;
    fails(open(&link, OFlags::NOFOLLOW), Errno::LOOP)?;
    fails(fs::read_link(&file), Errno::INVAL)?;
    let mut opened = File::open(&sub)?;
    fails(opened.read(&mut [0]), Errno::ISDIR)?;
    fails(fs::remove_file(&sub), Errno::ISDIR)?;
    fails(fs::remove_dir(&file), Errno::NOTDIR)
}

fn modes(dir: &Path) -> anyhow::Result<()> {
    let before = rustix::process::umask(Mode::from_raw_mode(0o027));
    let made = (|| {
        rustix::fs::mkdir(dir.join("d"), Mode::from_raw_mode(0o777))?;
        let flags = OFlags::CREATE | OFlags::WRONLY;
        rustix::fs::open(dir.join("f"), flags, Mode::from_raw_mode(0o666)).map(drop)
    })();
    rustix::process::umask(before);
    made?;
    let mode = |name: &str| Ok::<_, std::io::Error>(fs::metadata(dir.join(name))?.mode() & 0o7777);
    ensure!(mode("d")? == 0o750 && mode("f")? == 0o640);
    for bits in [0o000, 0o777, 0o1644, 0o4755, 0o600] {
        fs::set_permissions(dir.join("f"), fs::Permissions::from_mode(bits))?;
        ensure!(mode("f")? == bits, "{bits:o} became {:o}", mode("f")?);
    }
    // A read-only file can be written by who opened it before it was.
    let mut file = read_write(&dir.join("f"))?;
    file.set_permissions(fs::Permissions::from_mode(0o400))?;
    file.write_all(b"x")?;
    // What is made in a set-group-ID directory belongs to its group.
    fs::set_permissions(dir.join("d"), fs::Permissions::from_mode(0o2770))?;
    fs::create_dir(dir.join("d/e"))?;
    let (outer, inner) = (fs::metadata(dir.join("d"))?, fs::metadata(dir.join("d/e"))?);
    ensure!(inner.gid() == outer.gid() && inner.mode() & 0o2000 != 0);
    Ok(())
}

fn unlinked(dir: &Path) -> anyhow::Result<()> {
    let path = dir.join("f");
    fs::write(&path, "first")?;
    let mut file = read_write(&path)?;
    fs::remove_file(&path)?;
    ensure!(!path.exists());
    ensure!(file.metadata()?.nlink() == 0);
    file.write_all(b"second")?;
    fs::write(&path, "another")?;
    let mut text = String::new();
    file.rewind()?;
    file.read_to_string(&mut text)?;
    ensure!(text == "second", "{text}");
    file.set_len(2)?;
    ensure!(file.metadata()?.len() == 2);
    ensure!(fs::read_to_string(&path)? == "another");
    // The same for a file that is replaced.
    let replaced = File::open(&path)?;
    fs::write(dir.join("new"), "new")?;
    fs::rename(dir.join("new"), &path)?;
    let mut text = String::new();
    (&replaced).read_to_string(&mut text)?;
    ensure!(text == "another", "{text}");
    // And for a directory: it is empty, and nothing can be made in it.
    fs::create_dir(dir.join("d"))?;
    let gone = open(&dir.join("d"), OFlags::DIRECTORY)?;
    fs::remove_dir(dir.join("d"))?;
    let made = rustix::fs::mkdirat(&gone, "x", Mode::RWXU);
    fails(made, Errno::NOENT)
}

fn rmdir(dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir.join("a/b"))?;
    fails(fs::remove_dir(dir.join("a")), Errno::NOTEMPTY)?;
    fails(rustix::fs::rmdir(dir.join("a/b/.")), Errno::INVAL)?;
    fails(rustix::fs::rmdir(dir.join("a/b/..")), Errno::NOTEMPTY)?;
    symlink("b", dir.join("a/l"))?;
    fails(rustix::fs::rmdir(dir.join("a/l")), Errno::NOTDIR)?;
    fs::remove_file(dir.join("a/l"))?;
    fs::remove_dir(dir.join("a/b"))?;
    fs::remove_dir(dir.join("a"))?;
    fails(fs::remove_dir(dir.join("a")), Errno::NOENT)
}

fn rename(dir: &Path) -> anyhow::Result<()> {
    let at = |name: &str| dir.join(name);
    fs::create_dir_all(at("full/sub"))?;
    fs::create_dir(at("empty"))?;
    fs::create_dir(at("moved"))?;
    fs::write(at("moved/f"), "in it")?;
    fs::write(at("one"), "one")?;
    fs::write(at("two"), "two")?;
    fails(fs::rename(at("one"), at("empty")), Errno::ISDIR)?;
    fails(fs::rename(at("empty"), at("one")), Errno::NOTDIR)?;
    // POSIX lets it be either; XFS says EEXIST.
    let full = fs::rename(at("moved"), at("full"));
    if fails(full, Errno::NOTEMPTY).is_err() {
        fails(fs::rename(at("moved"), at("full")), Errno::EXIST)?;
    }
    fails(fs::rename(at("full"), at("full/sub/x")), Errno::INVAL)?;
    fails(fs::rename(at("full"), at("full/x")), Errno::INVAL)?;
    let inode = fs::metadata(at("one"))?.ino();
    fs::rename(at("one"), at("two"))?;
    ensure!(fs::read_to_string(at("two"))? == "one" && !at("one").exists());
    ensure!(fs::metadata(at("two"))?.ino() == inode);
    fs::rename(at("moved"), at("empty"))?;
    ensure!(fs::read_to_string(at("empty/f"))? == "in it" && !at("moved").exists());
    fs::rename(at("empty"), at("full/sub/deep"))?;
    ensure!(fs::read_to_string(at("full/sub/deep/f"))? == "in it");
    // A link is renamed itself.
    symlink("two", at("l"))?;
    fs::rename(at("l"), at("m"))?;
    ensure!(fs::read_link(at("m"))? == Path::new("two") && at("two").exists());
    Ok(())
}

fn rename_links(dir: &Path) -> anyhow::Result<()> {
    let (one, two) = (dir.join("one"), dir.join("two"));
    fs::write(&one, "x")?;
    fs::hard_link(&one, &two)?;
    fs::rename(&one, &two)?;
    ensure!(one.exists() && two.exists());
    fs::rename(&one, &one)?;
    ensure!(fs::metadata(&one)?.nlink() == 2);
    Ok(())
}

fn rename_flags(dir: &Path) -> anyhow::Result<()> {
    let (one, two) = (dir.join("one"), dir.join("two"));
    fs::write(&one, "one")?;
    fs::write(&two, "two")?;
    let with = |flags| renameat_with(CWD, &one, CWD, &two, flags);
    fails(with(RenameFlags::NOREPLACE), Errno::EXIST)?;
    with(RenameFlags::EXCHANGE)?;
    ensure!(fs::read_to_string(&one)? == "two" && fs::read_to_string(&two)? == "one");
    fs::remove_file(&two)?;
    fails(with(RenameFlags::EXCHANGE), Errno::NOENT)?;
    with(RenameFlags::NOREPLACE)?;
    ensure!(!one.exists() && fs::read_to_string(&two)? == "two");
    Ok(())
}

fn renamed_parent(dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir.join("a/b"))?;
    let deep = open(&dir.join("a/b"), OFlags::DIRECTORY)?;
    fs::rename(dir.join("a"), dir.join("z"))?;
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
    rustix::fs::openat(&deep, "f", flags, Mode::RUSR)?;
    ensure!(dir.join("z/b/f").exists());
    let up = rustix::fs::statat(&deep, "..", AtFlags::empty())?;
    ensure!(up.st_ino == fs::metadata(dir.join("z"))?.ino());
    Ok(())
}

fn links(dir: &Path) -> anyhow::Result<()> {
    let (one, two) = (dir.join("one"), dir.join("two"));
    fs::write(&one, "x")?;
    fs::hard_link(&one, &two)?;
    let (a, b) = (fs::metadata(&one)?, fs::metadata(&two)?);
    ensure!(a.ino() == b.ino() && a.dev() == b.dev() && a.nlink() == 2 && b.nlink() == 2);
    fs::write(&two, "longer")?;
    ensure!(fs::read_to_string(&one)? == "longer");
    fs::set_permissions(&one, fs::Permissions::from_mode(0o604))?;
    ensure!(fs::metadata(&two)?.mode() & 0o777 == 0o604);
    fails(fs::hard_link(&one, &two), Errno::EXIST)?;
    fails(fs::hard_link(dir.join("none"), dir.join("x")), Errno::NOENT)?;
    fs::create_dir(dir.join("d"))?;
    fails(fs::hard_link(dir.join("d"), dir.join("x")), Errno::PERM)?;
    fs::remove_file(&one)?;
    ensure!(fs::metadata(&two)?.nlink() == 1 && fs::read_to_string(&two)? == "longer");
    // A link of a link, not of what it leads to.
    symlink("two", dir.join("l"))?;
    rustix::fs::linkat(CWD, dir.join("l"), CWD, dir.join("m"), AtFlags::empty())?;
    ensure!(fs::symlink_metadata(dir.join("m"))?.is_symlink());
    Ok(())
}

fn symlinks(dir: &Path) -> anyhow::Result<()> {
    fs::create_dir(dir.join("d"))?;
    fs::write(dir.join("d/f"), "x")?;
    symlink("d/f", dir.join("l"))?;
    symlink("d", dir.join("dl"))?;
    let own = fs::symlink_metadata(dir.join("l"))?;
    ensure!(own.is_symlink() && own.len() == 3);
    ensure!(fs::metadata(dir.join("l"))?.len() == 1);
    ensure!(fs::read_to_string(dir.join("dl/f"))? == "x");
    ensure!(fs::read_to_string(dir.join("dl/../l"))? == "x");
    symlink("b", dir.join("a"))?;
    symlink("a", dir.join("b"))?;
    fails(File::open(dir.join("a")), Errno::LOOP)?;
    fails(symlink("x", dir.join("l")), Errno::EXIST)?;
    // Not every file system of the guest takes what a path may have.
    let most = if rustix::fs::statfs(dir)?.f_type == XFS {
        1023
    } else {
        4095
    };
    let target = "t".repeat(most);
    symlink(&target, dir.join("long"))?;
    ensure!(fs::read_link(dir.join("long"))? == Path::new(&target));
    fails(
        symlink("t".repeat(4096), dir.join("longer")),
        Errno::NAMETOOLONG,
    )?;
    fails(symlink("", dir.join("e")), Errno::NOENT)?;
    // Removed itself.
    fs::remove_file(dir.join("dl"))?;
    ensure!(dir.join("d/f").exists());
    Ok(())
}

fn truncation(dir: &Path) -> anyhow::Result<()> {
    let path = dir.join("f");
    fs::write(&path, [b'x'; 5000])?;
    read_write(&path)?.set_len(10)?;
    read_write(&path)?.set_len(9000)?;
    let bytes = fs::read(&path)?;
    ensure!(bytes.len() == 9000 && bytes[..10] == [b'x'; 10]);
    ensure!(bytes[10..].iter().all(|byte| *byte == 0));
    fails(File::open(&path)?.set_len(1), Errno::INVAL)?;
    File::create(&path)?;
    ensure!(fs::metadata(&path)?.len() == 0);
    // The offset stays where it was.
    let mut file = read_write(&path)?;
    file.write_all(b"abcdef")?;
    file.set_len(2)?;
    file.write_all(b"g")?;
    ensure!(fs::read(&path)? == b"ab\0\0\0\0g");
    Ok(())
}

fn appending(dir: &Path) -> anyhow::Result<()> {
    let path = dir.join("f");
    let append = || OpenOptions::new().create(true).append(true).open(&path);
    let (mut one, mut two) = (append()?, append()?);
    for round in 0..50 {
        one.write_all(format!("one {round}\n").as_bytes())?;
        two.write_all(format!("two {round}\n").as_bytes())?;
    }
    let text = fs::read_to_string(&path)?;
    ensure!(text.lines().count() == 100 && text.starts_with("one 0\ntwo 0\none 1\n"));
    one.set_len(0)?;
    two.write_all(b"x")?;
    ensure!(fs::read(&path)? == b"x");
    Ok(())
}

fn holes(dir: &Path) -> anyhow::Result<()> {
    const FAR: u64 = 3 << 30;
    let path = dir.join("f");
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).open(&path)?;
    file.write_all_at(b"end", FAR)?;
    ensure!(file.metadata()?.len() == FAR + 3);
    let mut bytes = [1; 4096];
    file.read_exact_at(&mut bytes, FAR / 2)?;
    ensure!(bytes == [0; 4096]);
    // Nearly nothing of it takes room.
    ensure!(file.metadata()?.blocks() * 512 < 1 << 20);
    ensure!(file.read_at(&mut bytes, FAR + 3)? == 0);
    let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0))?;
    ensure!(hole == 0 || hole == FAR + 3, "a hole at {hole}");
    Ok(())
}

fn two_descriptors(dir: &Path) -> anyhow::Result<()> {
    let path = dir.join("f");
    fs::write(&path, [b'a'; 10_000])?;
    let (writer, reader) = (read_write(&path)?, File::open(&path)?);
    let mut bytes = [0; 100];
    for round in 0..100_u8 {
        let offset = u64::from(round) * 97;
        writer.write_all_at(&[round; 100], offset)?;
        reader.read_exact_at(&mut bytes, offset)?;
        ensure!(bytes == [round; 100], "round {round}");
    }
    Ok(())
}

fn offsets(dir: &Path) -> anyhow::Result<()> {
    let path = dir.join("f");
    fs::write(&path, "abcdef")?;
    let mut one = File::open(&path)?;
    let (mut same, mut own) = (one.try_clone()?, File::open(&path)?);
    let mut byte = [0; 1];
    for (file, wanted) in [(&mut one, b'a'), (&mut same, b'b'), (&mut own, b'a')] {
        file.read_exact(&mut byte)?;
        ensure!(byte[0] == wanted);
    }
    ensure!(one.stream_position()? == 2);
    fails(one.seek(SeekFrom::Current(-3)), Errno::INVAL)?;
    ensure!(one.seek(SeekFrom::End(4))? == 10 && one.read(&mut byte)? == 0);
    Ok(())
}

fn persistence(dir: &Path) -> anyhow::Result<()> {
    for number in 0..20_usize {
        let path = dir.join(number.to_string());
        let mut file = File::create(&path)?;
        let bytes: Vec<u8> = (0..=250).cycle().take(number * 1000).collect();
        file.write_all(&bytes)?;
        match number % 3 {
            0 => file.sync_all()?,
            1 => file.sync_data()?,
            _ => {}
        }
        drop(file);
        ensure!(fs::read(&path)? == bytes, "file {number}");
    }
    File::open(dir)?.sync_all()?;
    Ok(())
}

fn stamp(path: &Path) -> std::io::Result<[(i64, i64); 3]> {
    let meta = fs::symlink_metadata(path)?;
    Ok([
        (meta.atime(), meta.atime_nsec()),
        (meta.mtime(), meta.mtime_nsec()),
        (meta.ctime(), meta.ctime_nsec()),
    ])
}

/// Waits until the kernel's clock of files has gone on, then does something, and
/// says which of the access, modification and change time it changed.
fn changed<T>(path: &Path, work: impl FnOnce() -> std::io::Result<T>) -> anyhow::Result<[bool; 3]> {
    let before = stamp(path)?;
    let probe = path.with_file_name("clock");
    loop {
        fs::write(&probe, "x")?;
        if stamp(&probe)?[2] > before[2] {
            break;
        }
        std::thread::yield_now();
    }
    fs::remove_file(&probe)?;
    work()?;
    let after = stamp(path)?;
    Ok([0, 1, 2].map(|which| after[which] > before[which]))
}

fn times(dir: &Path) -> anyhow::Result<()> {
    let inner = dir.join("in");
    fs::create_dir(&inner)?;
    let file = dir.join("f");
    fs::write(&file, "x")?;
    let mut handle = read_write(&file)?;
    let write = changed(&file, || handle.write_all(b"y"))?;
    ensure!(write[1] && write[2], "write: {write:?}");
    let mode = fs::Permissions::from_mode(0o600);
    let chmod = changed(&file, || fs::set_permissions(&file, mode))?;
    ensure!(!chmod[1] && chmod[2], "chmod: {chmod:?}");
    let link = changed(&file, || fs::hard_link(&file, dir.join("g")))?;
    ensure!(!link[1] && link[2], "link: {link:?}");
    let cut = changed(&file, || handle.set_len(1))?;
    ensure!(cut[1] && cut[2], "truncate: {cut:?}");
    let read = changed(&file, || fs::read(&file))?;
    ensure!(!read[1] && !read[2], "read: {read:?}");
    let create = changed(&inner, || File::create(inner.join("n")))?;
    ensure!(create[1] && create[2], "create: {create:?}");
    let rename = changed(&inner, || fs::rename(inner.join("n"), inner.join("m")))?;
    ensure!(rename[1] && rename[2], "rename: {rename:?}");
    let remove = changed(&inner, || fs::remove_file(inner.join("m")))?;
    ensure!(remove[1] && remove[2], "unlink: {remove:?}");
    Ok(())
}

fn set_times(dir: &Path) -> anyhow::Result<()> {
    let path = dir.join("f");
    fs::write(&path, "x")?;
    let time = |seconds, nanos| Timespec {
        tv_sec: seconds,
        tv_nsec: nanos,
    };
    let set = |last_access, last_modification| {
        let times = Timestamps {
            last_access,
            last_modification,
        };
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty())
    };
    set(
        time(1_000_000_000, 123_456_789),
        time(1_500_000_000, 987_654_321),
    )?;
    let found = stamp(&path)?;
    ensure!(found[0] == (1_000_000_000, 123_456_789), "{found:?}");
    ensure!(found[1] == (1_500_000_000, 987_654_321), "{found:?}");
    set(time(0, UTIME_OMIT), time(1, 0))?;
    ensure!(stamp(&path)?[..2] == [(1_000_000_000, 123_456_789), (1, 0)]);
    set(time(0, UTIME_NOW), time(0, UTIME_OMIT))?;
    let found = stamp(&path)?;
    ensure!(
        found[0].0 > 1_600_000_000 && found[1] == (1, 0),
        "{found:?}"
    );
    // Before the epoch, too.
    set(time(-10, 0), time(-10, 5))?;
    ensure!(stamp(&path)?[1] == (-10, 5), "{:?}", stamp(&path)?);
    Ok(())
}

fn owners(dir: &Path) -> anyhow::Result<()> {
    let path = dir.join("f");
    fs::write(&path, "x")?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6755))?;
    let own = fs::metadata(&path)?;
    ensure!(own.uid() == rustix::process::geteuid().as_raw());
    if own.uid() != 0 {
        // To oneself is allowed, and changes the bits as well.
        rustix::fs::chown(&path, Some(Uid::from_raw(own.uid())), None)?;
        ensure!(fs::metadata(&path)?.mode() & 0o6000 == 0);
        return Ok(());
    }
    rustix::fs::chown(&path, Some(Uid::from_raw(1234)), Some(Gid::from_raw(4321)))?;
    let found = fs::metadata(&path)?;
    ensure!((found.uid(), found.gid()) == (1234, 4321));
    ensure!(found.mode() & 0o6000 == 0, "{:o}", found.mode());
    symlink("f", dir.join("l"))?;
    let (user, flags) = (Some(Uid::from_raw(7)), AtFlags::SYMLINK_NOFOLLOW);
    rustix::fs::chownat(CWD, dir.join("l"), user, None, flags)?;
    ensure!(fs::symlink_metadata(dir.join("l"))?.uid() == 7);
    ensure!(fs::metadata(&path)?.uid() == 1234);
    Ok(())
}

fn special_files(dir: &Path) -> anyhow::Result<()> {
    let pipe = dir.join("pipe");
    rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let reader = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(&pipe)?;
    OpenOptions::new()
        .write(true)
        .open(&pipe)?
        .write_all(b"through")?;
    let mut text = String::new();
    (&reader).read_to_string(&mut text)?;
    ensure!(text == "through", "{text}");
    let path = dir.join("s");
    let listener = UnixListener::bind(&path)?;
    let mut client = UnixStream::connect(&path)?;
    let (mut server, _) = listener.accept()?;
    client.write_all(b"hello")?;
    drop(client);
    let mut text = String::new();
    server.read_to_string(&mut text)?;
    ensure!(text == "hello", "{text}");
    fails(File::open(&path), Errno::NXIO)?;
    drop(listener);
    fails(UnixStream::connect(&path), Errno::CONNREFUSED)
}

fn listing(dir: &Path) -> anyhow::Result<()> {
    for number in 0..500 {
        File::create(dir.join(format!("a name of some length {number}")))?;
    }
    fs::create_dir(dir.join("d"))?;
    symlink("d", dir.join("l"))?;
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let (kind, meta) = (entry.file_type()?, fs::symlink_metadata(entry.path())?);
        ensure!(kind == meta.file_type(), "{entry:?}");
        names.push(entry.file_name());
    }
    names.sort();
    names.dedup();
    ensure!(names.len() == 502, "{} names", names.len());
    Ok(())
}

fn changing_listing(dir: &Path) -> anyhow::Result<()> {
    for number in 0..300 {
        File::create(dir.join(format!("old {number}")))?;
    }
    // What is there throughout is seen once; all of it can go meanwhile.
    let mut seen = 0;
    for (number, entry) in fs::read_dir(dir)?.enumerate() {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("old") {
            seen += 1;
            fs::remove_file(entry.path())?;
        }
        if number < 100 {
            File::create(dir.join(format!("new {number}")))?;
        }
    }
    ensure!(seen == 300, "{seen} seen");
    let left = fs::read_dir(dir)?.count();
    ensure!(left == 100, "{left} left");
    Ok(())
}

fn allocation(dir: &Path) -> anyhow::Result<()> {
    use rustix::fs::{FallocateFlags as Flags, fallocate};
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(dir.join("f"))?;
    fallocate(&file, Flags::empty(), 0, 100_000)?;
    ensure!(file.metadata()?.len() == 100_000 && file.metadata()?.blocks() * 512 >= 100_000);
    fallocate(&file, Flags::KEEP_SIZE, 100_000, 100_000)?;
    ensure!(file.metadata()?.len() == 100_000);
    file.write_all_at(&[b'x'; 16384], 0)?;
    fallocate(&file, Flags::PUNCH_HOLE | Flags::KEEP_SIZE, 4096, 4096)?;
    let mut bytes = [0; 16384];
    file.read_exact_at(&mut bytes, 0)?;
    ensure!(bytes[4096..8192] == [0; 4096] && bytes[..4096] == [b'x'; 4096]);
    ensure!(bytes[8192..] == [b'x'; 8192]);
    Ok(())
}

fn mapping(dir: &Path) -> anyhow::Result<()> {
    let path = dir.join("f");
    fs::write(&path, [b'a'; 8192])?;
    let file = read_write(&path)?;
    let shared = super::mapped::Mapped::shared(&file, 8192)?;
    ensure!(shared.get(5000) == b'a');
    shared.set(5000, b'm');
    shared.sync()?;
    let mut byte = [0; 1];
    file.read_exact_at(&mut byte, 5000)?;
    ensure!(byte == *b"m");
    file.write_all_at(b"w", 100)?;
    ensure!(shared.get(100) == b'w');
    Ok(())
}

fn copying(dir: &Path) -> anyhow::Result<()> {
    let (from, to) = (dir.join("from"), dir.join("to"));
    let bytes: Vec<u8> = (0..50_000_u32).map(|at| (at % 253) as u8).collect();
    fs::write(&from, &bytes)?;
    fs::copy(&from, &to)?;
    ensure!(fs::read(&to)? == bytes);
    Ok(())
}

fn size(dir: &Path) -> anyhow::Result<()> {
    let stat = rustix::fs::statvfs(dir)?;
    ensure!(stat.f_blocks > 0 && stat.f_bfree <= stat.f_blocks && stat.f_bsize > 0);
    ensure!(stat.f_namemax == 255, "{}", stat.f_namemax);
    Ok(())
}

fn permission(dir: &Path) -> anyhow::Result<()> {
    let path = dir.join("f");
    fs::write(&path, "x")?;
    let mode = |path: &Path, bits| fs::set_permissions(path, fs::Permissions::from_mode(bits));
    mode(&path, 0o400)?;
    fails(read_write(&path), Errno::ACCESS)?;
    mode(&path, 0o200)?;
    fails(File::open(&path), Errno::ACCESS)?;
    let access = rustix::fs::access(&path, rustix::fs::Access::READ_OK);
    fails(access, Errno::ACCESS)?;
    // Of a directory: x to pass, r to list, w to change.
    let sub = dir.join("d");
    fs::create_dir(&sub)?;
    fs::write(sub.join("f"), "x")?;
    mode(&sub, 0o600)?;
    fails(File::open(sub.join("f")), Errno::ACCESS)?;
    mode(&sub, 0o100)?;
    fails(fs::read_dir(&sub), Errno::ACCESS)?;
    File::open(sub.join("f"))?;
    mode(&sub, 0o500)?;
    fails(File::create(sub.join("g")), Errno::ACCESS)?;
    fails(fs::remove_file(sub.join("f")), Errno::ACCESS)?;
    fails(fs::rename(sub.join("f"), sub.join("g")), Errno::ACCESS)?;
    mode(&sub, 0o700)?;
    Ok(())
}

fn sticky(dir: &Path) -> anyhow::Result<()> {
    // Made by root in the directory above the one of all checks.
    let theirs = dir.join("../..").join(OF_ROOT);
    fails(fs::remove_dir(theirs.join("d")), Errno::PERM)?;
    fails(fs::rename(theirs.join("d"), theirs.join("e")), Errno::PERM)?;
    File::create(theirs.join("mine"))?;
    fs::remove_file(theirs.join("mine"))?;
    Ok(())
}

fn set_id(dir: &Path) -> anyhow::Result<()> {
    let path = dir.join("f");
    fs::write(&path, "x")?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6755))?;
    read_write(&path)?.write_all(b"y")?;
    let mode = fs::metadata(&path)?.mode() & 0o7777;
    ensure!(mode == 0o755, "{mode:o}");
    Ok(())
}

fn giving_away(dir: &Path) -> anyhow::Result<()> {
    let path = dir.join("f");
    fs::write(&path, "x")?;
    let to = |uid, gid| rustix::fs::chown(&path, uid, gid);
    fails(to(Some(Uid::ROOT), None), Errno::PERM)?;
    fails(to(None, Some(Gid::ROOT)), Errno::PERM)?;
    let theirs = dir.join("../..").join(OF_ROOT).join("d");
    let mode = fs::Permissions::from_mode(0o777);
    fails(fs::set_permissions(theirs, mode), Errno::PERM)
}
