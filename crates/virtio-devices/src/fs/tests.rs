//! The whole device, driven as a guest drives it: through its queues.

use super::abi::{Body, ROOT_NODE, opcode};
use super::{Fs, FsHandle, FsLimits, ShareAccess, ShareError};
use crate::testing::{Buffer, Harness};
use rustix::fs::{CWD, FileType, Mode, OFlags, RenameFlags, mknodat, open, renameat_with};
use rustix::io::Errno;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::TempDir;

mod fuzz;

const LIMITS: FsLimits = FsLimits {
    nodes: 20,
    handles: 4,
};
/// Room for the largest answer of these tests.
const ROOM: u32 = 8192;
/// What a process opens with: reading, writing, both.
const RDONLY: u32 = 0;
const WRONLY: u32 = 1;
const O_TRUNC: u32 = 0o1000;
const O_APPEND: u32 = 0o2000;

type Answer = Result<Vec<u8>, Errno>;

/// A guest with a share named "s" of a temporary directory.
struct Guest {
    harness: Harness<Fs>,
    shares: FsHandle,
    dir: TempDir,
    share: u64,
    request: u64,
    room: u64,
    /// The thread of the guest that asks.
    thread: u32,
}

fn path_fd(path: &Path) -> OwnedFd {
    open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).expect("open")
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

fn text(parts: &[&str]) -> Vec<u8> {
    parts
        .iter()
        .flat_map(|part| [part.as_bytes(), b"\0"].concat())
        .collect()
}

impl Guest {
    fn new(access: ShareAccess) -> Guest {
        let dir = tempfile::tempdir().expect("a directory");
        let (device, shares) = Fs::new("shares", LIMITS).expect("a device");
        shares
            .attach("s", path_fd(dir.path()), access)
            .expect("attached");
        let mut harness = Harness::new(device, 16, 8);
        let (request, room) = (harness.allocate(128 << 10), harness.allocate(ROOM));
        let mut guest = Guest {
            harness,
            shares,
            dir,
            share: 0,
            request,
            room,
            thread: 1,
        };
        let init = Body::default()
            .u32(7)
            .u32(41)
            .u32(65536)
            .u32(u32::MAX)
            .u32(u32::MAX);
        let answer = guest
            .call(opcode::INIT, 0, &init.zeroes(44).0)
            .expect("init");
        assert_eq!(answer.len(), 64);
        guest.share = guest.lookup(ROOT_NODE, "s").expect("the share");
        guest
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// A request as root.
    fn call(&mut self, opcode: u32, node: u64, body: &[u8]) -> Answer {
        self.call_as(0, opcode, node, body)
    }

    fn call_as(&mut self, id: u32, opcode: u32, node: u64, body: &[u8]) -> Answer {
        let len = u32::try_from(40 + body.len()).expect("small");
        let header = Body::default().u32(len).u32(opcode).u64(77).u64(node);
        let mut bytes = header.u32(id).u32(id).u32(self.thread).u32(0).0;
        bytes.extend(body);
        self.send(&bytes).expect("an answer")
    }

    /// The answer to these bytes; `None` if there is none.
    fn send(&mut self, bytes: &[u8]) -> Option<Answer> {
        use vm_memory::{Bytes, GuestAddress};
        let at = GuestAddress(self.request);
        self.harness.memory.write_slice(bytes, at).expect("room");
        let len = u32::try_from(bytes.len()).expect("small");
        let buffers = [
            Buffer::readable(self.request, len),
            Buffer::writable(self.room, ROOM),
        ];
        self.harness.rings[1].push(&buffers).expect("room");
        self.harness.run(1).expect("the device works");
        let (_, written) = self.harness.rings[1].pop_used().expect("done");
        if written == 0 {
            return None;
        }
        let answer = self.harness.load(self.room, written as usize);
        assert_eq!(u64_at(&answer, 8), u64_at(bytes, 8));
        let error = i32::from_le_bytes(answer[4..8].try_into().expect("4 bytes"));
        if error != 0 {
            assert_eq!(written, 16);
            return Some(Err(Errno::from_raw_os_error(-error)));
        }
        Some(Ok(answer[16..].to_vec()))
    }

    fn lookup(&mut self, dir: u64, name: &str) -> Result<u64, Errno> {
        let entry = self.call(opcode::LOOKUP, dir, &text(&[name]))?;
        assert_eq!(entry.len(), 128);
        Ok(u64_at(&entry, 0))
    }

    fn open(&mut self, node: u64, flags: u32) -> Result<u64, Errno> {
        let opened = self.call(opcode::OPEN, node, &Body::default().u32(flags).u32(0).0)?;
        Ok(u64_at(&opened, 0))
    }

    fn write(&mut self, handle: u64, offset: u64, data: &[u8], flags: u32) -> Answer {
        let size = u32::try_from(data.len()).expect("small");
        let head = Body::default().u64(handle).u64(offset).u32(size).u32(0);
        let mut bytes = head.u64(0).u32(flags).u32(0).0;
        bytes.extend(data);
        self.call(opcode::WRITE, 0, &bytes)
    }

    fn read(&mut self, handle: u64, offset: u64, size: u32) -> Answer {
        let body = Body::default().u64(handle).u64(offset).u32(size).zeroes(20);
        self.call(opcode::READ, 0, &body.0)
    }

    /// Gives back every lookup of these nodes, and more.
    fn forget<'a>(&mut self, nodes: impl IntoIterator<Item = &'a u64>) {
        let mut body = Body::default().u32(u32::MAX).u32(0);
        for node in nodes {
            body = body.u64(*node).u64(u64::MAX);
        }
        let header = Body::default()
            .u32(0)
            .u32(opcode::BATCH_FORGET)
            .u64(1)
            .u64(0)
            .zeroes(16)
            .0;
        assert_eq!(self.send(&[header, body.0].concat()), None);
    }

    fn release(&mut self, handle: u64) {
        self.call(
            opcode::RELEASE,
            0,
            &Body::default().u64(handle).zeroes(16).0,
        )
        .expect("closed");
    }
}

#[test]
fn files_are_made_written_and_read() {
    let mut guest = Guest::new(ShareAccess::Writable);
    let create = Body::default().u32(2).u32(0o640).zeroes(8).0;
    let body = [create, text(&["f"])].concat();
    let made = guest
        .call_as(1234, opcode::CREATE, guest.share, &body)
        .expect("made");
    let handle = u64_at(&made, 128);
    guest.write(handle, 3, b"lo", WRONLY).expect("written");
    guest.write(handle, 0, b"hel", WRONLY).expect("written");
    assert_eq!(guest.read(handle, 1, 100).expect("read"), b"ello");
    // Behind what the host adds meanwhile, whatever offset the guest believes in.
    fs::write(guest.path("f"), "hello, ").expect("write");
    guest
        .write(handle, 5, b"world", WRONLY | O_APPEND)
        .expect("written");
    assert_eq!(
        fs::read_to_string(guest.path("f")).expect("read"),
        "hello, world"
    );
    let meta = fs::metadata(guest.path("f")).expect("there");
    assert_eq!(meta.mode() & 0o7777, 0o640);
    if rustix::process::geteuid().is_root() {
        assert_eq!((meta.uid(), meta.gid()), (1234, 1234));
    }
}

#[test]
fn nothing_in_a_read_only_share_changes() {
    let mut guest = Guest::new(ShareAccess::ReadOnly);
    fs::write(guest.path("f"), "text").expect("write");
    let file = guest.lookup(guest.share, "f").expect("there");
    let share = guest.share;
    let rofs = |answer: Answer| assert_eq!(answer, Err(Errno::ROFS));
    for flags in [WRONLY, 2, RDONLY | O_TRUNC] {
        assert_eq!(guest.open(file, flags), Err(Errno::ROFS), "{flags:o}");
    }
    let create = [Body::default().u32(1).u32(0o600).zeroes(8).0, text(&["n"])].concat();
    rofs(guest.call(opcode::CREATE, share, &create));
    rofs(guest.call(opcode::MKDIR, share, &[vec![0; 8], text(&["n"])].concat()));
    rofs(guest.call(opcode::SYMLINK, share, &text(&["n", "f"])));
    let fifo = [Body::default().u32(0o10_600).zeroes(12).0, text(&["n"])].concat();
    rofs(guest.call(opcode::MKNOD, share, &fifo));
    rofs(guest.call(opcode::UNLINK, share, &text(&["f"])));
    rofs(guest.call(
        opcode::RENAME,
        share,
        &[share.to_le_bytes().to_vec(), text(&["f", "g"])].concat(),
    ));
    rofs(guest.call(
        opcode::LINK,
        share,
        &[file.to_le_bytes().to_vec(), text(&["n"])].concat(),
    ));
    let chmod = Body::default().u32(1).zeroes(64).u32(0o777).zeroes(16).0;
    rofs(guest.call(opcode::SETATTR, file, &chmod));
    let xattr = [
        Body::default().u32(1).u32(0).0,
        text(&["user.a"]),
        b"x".to_vec(),
    ]
    .concat();
    rofs(guest.call(opcode::SETXATTR, file, &xattr));
    let handle = guest.open(file, RDONLY).expect("opened");
    rofs(guest.write(handle, 0, b"x", WRONLY));
    rofs(guest.call(
        opcode::FALLOCATE,
        file,
        &Body::default().u64(handle).u64(0).u64(9).u64(0).0,
    ));
    assert_eq!(guest.read(handle, 0, 9).expect("read"), b"text");
    assert_eq!(fs::read_dir(guest.dir.path()).expect("listed").count(), 1);
    // Until the host says otherwise, and then as before.
    guest
        .shares
        .attach("s", path_fd(guest.dir.path()), ShareAccess::Writable)
        .expect("changed");
    let writing = guest.open(file, WRONLY).expect("opened");
    guest.write(writing, 0, b"T", WRONLY).expect("written");
    guest
        .shares
        .attach("s", path_fd(guest.dir.path()), ShareAccess::ReadOnly)
        .expect("changed");
    rofs(guest.write(writing, 0, b"x", WRONLY));
    assert_eq!(fs::read_to_string(guest.path("f")).expect("read"), "Text");
}

#[test]
fn links_are_read_and_never_followed() {
    let mut guest = Guest::new(ShareAccess::Writable);
    let outside = tempfile::tempdir().expect("a directory");
    fs::write(outside.path().join("secret"), "x").expect("write");
    symlink(outside.path(), guest.path("out")).expect("a link");
    let link = guest.lookup(guest.share, "out").expect("there");
    let target = guest.call(opcode::READLINK, link, &[]).expect("read");
    assert_eq!(target, outside.path().as_os_str().as_encoded_bytes());
    assert!(guest.lookup(link, "secret").is_err());
    assert_eq!(guest.open(link, RDONLY), Err(Errno::LOOP));
    let opendir = guest.call(opcode::OPENDIR, link, &[0; 8]);
    assert!(opendir.is_err());
    for name in ["..", ".", "", "out/secret", "/etc"] {
        assert_eq!(guest.lookup(guest.share, name), Err(Errno::INVAL), "{name}");
    }
    // A directory of the way that becomes a link while the guest is in it.
    fs::create_dir(guest.path("d")).expect("made");
    fs::write(guest.path("d/f"), "mine").expect("write");
    let dir = guest.lookup(guest.share, "d").expect("there");
    fs::rename(guest.path("d"), guest.path("e")).expect("moved");
    symlink(outside.path(), guest.path("d")).expect("a link");
    assert_eq!(guest.lookup(dir, "secret"), Err(Errno::NOENT));
    guest.lookup(dir, "f").expect("there");
}

/// A directory and a link that leads out change places all the time.
#[test]
fn no_race_of_names_leads_out_of_a_share() {
    const ROUNDS: usize = 500;
    let mut guest = Guest::new(ShareAccess::Writable);
    let outside = tempfile::tempdir().expect("a directory");
    fs::write(outside.path().join("secret"), "as it was").expect("write");
    let (dir, link) = (guest.path("d"), guest.path("l"));
    fs::create_dir(&dir).expect("made");
    symlink(outside.path(), &link).expect("a link");
    let rounds = AtomicUsize::new(0);
    let mut changed = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // It ends when the guest has failed, too.
            for _ in 0..1_000_000 {
                let flags = RenameFlags::EXCHANGE;
                renameat_with(CWD, &dir, CWD, &link, flags).expect("exchanged");
                if rounds.load(Ordering::Relaxed) == ROUNDS {
                    break;
                }
            }
        });
        for _ in 0..ROUNDS {
            let node = guest.lookup(guest.share, "d").expect("there");
            changed += usize::from(change_what_was_found(&mut guest, node));
            guest.forget([&node]);
            rounds.fetch_add(1, Ordering::Relaxed);
        }
    });
    assert!((1..ROUNDS).contains(&changed), "{changed}");
    let secret = fs::read_to_string(outside.path().join("secret"));
    assert_eq!(secret.expect("still there"), "as it was");
    assert_eq!(fs::read_dir(outside.path()).expect("listed").count(), 1);
}

/// Changes a directory, and returns whether it was one and not a link.
fn change_what_was_found(guest: &mut Guest, node: u64) -> bool {
    let sub = [vec![0; 8], text(&["sub"])].concat();
    let made = guest.call(opcode::MKDIR, node, &sub);
    let create = [Body::default().u32(2).u32(0o600).zeroes(8).0, text(&["f"])].concat();
    let created = guest.call(opcode::CREATE, node, &create);
    assert_eq!(made.is_ok(), created.is_ok());
    assert!(guest.lookup(node, "secret").is_err());
    let unlinked = guest.call(opcode::UNLINK, node, &text(&["secret"]));
    assert!(unlinked.is_err());
    assert!(guest.open(node, WRONLY | O_TRUNC).is_err());
    let chmod = Body::default().u32(1).zeroes(64).u32(0o700).zeroes(16).0;
    let changed = guest.call(opcode::SETATTR, node, &chmod);
    assert_eq!(made.is_ok(), changed.is_ok());
    if let (Ok(made), Ok(created)) = (&made, &created) {
        guest.release(u64_at(created, 128));
        let removed = guest.call(opcode::RMDIR, node, &text(&["sub"]));
        removed.expect("removed");
        guest.forget([&u64_at(made, 0), &u64_at(created, 0)]);
    }
    made.is_ok()
}

#[test]
fn devices_and_pipes_are_neither_made_nor_opened() {
    let mut guest = Guest::new(ShareAccess::Writable);
    mknodat(CWD, guest.path("p"), FileType::Fifo, Mode::RWXU, 0).expect("a pipe");
    let pipe = guest.lookup(guest.share, "p").expect("there");
    assert_eq!(guest.open(pipe, RDONLY), Err(Errno::NXIO));
    for kind in [0o020_000, 0o060_000] {
        let node = Body::default().u32(kind | 0o666).u32(0x103).zeroes(8).0;
        let made = guest.call(
            opcode::MKNOD,
            guest.share,
            &[node, text(&["null"])].concat(),
        );
        assert_eq!(made, Err(Errno::PERM));
    }
    // Nor opened because a file of that name was to be made.
    let create = [Body::default().u32(1).u32(0o600).zeroes(8).0, text(&["p"])].concat();
    assert_eq!(
        guest.call(opcode::CREATE, guest.share, &create),
        Err(Errno::NXIO)
    );
}

#[test]
fn nothing_passes_from_share_to_share() {
    let mut guest = Guest::new(ShareAccess::Writable);
    let other = tempfile::tempdir_in(guest.dir.path()).expect("a directory");
    guest
        .shares
        .attach("t", path_fd(other.path()), ShareAccess::Writable)
        .expect("attached");
    fs::write(guest.path("f"), "").expect("write");
    let target = guest.lookup(ROOT_NODE, "t").expect("the share");
    let file = guest.lookup(guest.share, "f").expect("there");
    let rename = [target.to_le_bytes().to_vec(), text(&["f", "f"])].concat();
    assert_eq!(
        guest.call(opcode::RENAME, guest.share, &rename),
        Err(Errno::XDEV)
    );
    let link = [file.to_le_bytes().to_vec(), text(&["f"])].concat();
    assert_eq!(guest.call(opcode::LINK, target, &link), Err(Errno::XDEV));
    assert_eq!(
        guest.call(
            opcode::MKDIR,
            ROOT_NODE,
            &[vec![0; 8], text(&["x"])].concat()
        ),
        Err(Errno::ROFS)
    );
}

#[test]
fn descriptors_are_bounded_and_given_back() {
    let mut guest = Guest::new(ShareAccess::Writable);
    let mut nodes = Vec::new();
    for n in 0..LIMITS.nodes {
        fs::write(guest.path(&n.to_string()), "").expect("write");
        match guest.lookup(guest.share, &n.to_string()) {
            Ok(node) => nodes.push(node),
            Err(error) => assert_eq!(error, Errno::NFILE),
        }
    }
    assert_eq!(nodes.len(), LIMITS.nodes - 1);
    let mut handles: Vec<u64> = (0..LIMITS.handles)
        .map(|_| guest.open(nodes[0], RDONLY).expect("opened"))
        .collect();
    assert_eq!(guest.open(nodes[0], RDONLY), Err(Errno::NFILE));
    guest.release(handles.pop().expect("a handle"));
    guest.open(nodes[0], RDONLY).expect("opened");
    // Of all but the first; those of a share and of nobody do no harm.
    guest.forget(nodes[1..].iter().chain(&[guest.share, ROOT_NODE, 9999]));
    assert_eq!(guest.lookup(nodes[1], "x"), Err(Errno::STALE));
    guest.lookup(guest.share, "19").expect("room again");
    guest.read(handles[0], 0, 1).expect("still open");
}

#[test]
fn a_detached_share_is_gone_with_all_that_was_open() {
    let mut guest = Guest::new(ShareAccess::Writable);
    fs::write(guest.path("f"), "text").expect("write");
    let file = guest.lookup(guest.share, "f").expect("there");
    let handle = guest.open(file, RDONLY).expect("opened");
    guest.shares.detach("s").expect("detached");
    assert!(guest.shares.shares().is_empty());
    assert_eq!(guest.read(handle, 0, 9), Err(Errno::BADF));
    assert_eq!(guest.open(file, RDONLY), Err(Errno::STALE));
    assert_eq!(guest.lookup(guest.share, "f"), Err(Errno::STALE));
    assert_eq!(guest.lookup(ROOT_NODE, "s"), Err(Errno::NOENT));
    assert!(matches!(
        guest.shares.detach("s"),
        Err(ShareError::NoSuchShare(_))
    ));
    // The name can be used again, and means something else.
    guest
        .shares
        .attach("s", path_fd(guest.dir.path()), ShareAccess::ReadOnly)
        .expect("attached");
    assert_ne!(guest.lookup(ROOT_NODE, "s").expect("there"), guest.share);
}

#[test]
fn only_directories_and_files_with_plain_names_are_shared() {
    let guest = Guest::new(ShareAccess::Writable);
    mknodat(CWD, guest.path("p"), FileType::Fifo, Mode::RWXU, 0).expect("a pipe");
    let attach = |name: &str, path: &Path| {
        guest
            .shares
            .attach(name, path_fd(path), ShareAccess::ReadOnly)
    };
    assert!(matches!(
        attach("p", &guest.path("p")),
        Err(ShareError::Type(_))
    ));
    for name in ["", "..", "a/b"] {
        assert!(matches!(
            attach(name, guest.dir.path()),
            Err(ShareError::Name(_))
        ));
    }
    assert!(matches!(
        attach("s", Path::new("/")),
        Err(ShareError::NameTaken(_))
    ));
}

/// A directory "v1" with a file "key", and a link "data" to it, which the guest
/// has read: the directory's node and the link's.
fn with_a_link_read(guest: &mut Guest) -> (u64, u64) {
    fs::create_dir(guest.path("v1")).expect("made");
    fs::write(guest.path("v1/key"), "").expect("write");
    symlink("v1", guest.path("data")).expect("a link");
    let dir = guest.lookup(guest.share, "v1").expect("there");
    let link = guest.lookup(guest.share, "data").expect("there");
    assert_eq!(
        guest.call(opcode::READLINK, link, &[]).expect("read"),
        b"v1"
    );
    (dir, link)
}

fn swap_the_link(guest: &Guest) {
    symlink("v2", guest.path("tmp")).expect("a link");
    fs::rename(guest.path("tmp"), guest.path("data")).expect("swapped");
}

#[test]
fn a_walk_by_a_link_that_was_swapped_begins_anew() {
    let mut guest = Guest::new(ShareAccess::ReadOnly);
    let (dir, link) = with_a_link_read(&mut guest);
    swap_the_link(&guest);
    // In the old directory, while it is being removed.
    fs::remove_file(guest.path("v1/key")).expect("removed");
    assert_eq!(guest.lookup(dir, "key"), Err(Errno::STALE));
    // By the name alone, it is missing.
    assert_eq!(guest.lookup(dir, "key"), Err(Errno::NOENT));
    // The old link, found before it was replaced.
    assert_eq!(
        guest.call(opcode::READLINK, link, &[]).expect("read"),
        b"v1"
    );
    guest.forget([&dir]);
    fs::remove_dir(guest.path("v1")).expect("removed");
    guest.thread = 2;
    assert_eq!(guest.lookup(guest.share, "v1"), Err(Errno::NOENT));
    guest.thread = 1;
    assert_eq!(guest.lookup(guest.share, "v1"), Err(Errno::STALE));
    assert_eq!(guest.lookup(guest.share, "v1"), Err(Errno::NOENT));
}

/// The driver asks whether what it knows holds, forgets it, on the other queue,
/// and asks what there is instead: only that answer counts.
#[test]
fn a_walk_begins_anew_though_the_driver_knew_the_old_directory() {
    let mut guest = Guest::new(ShareAccess::ReadOnly);
    let (dir, _) = with_a_link_read(&mut guest);
    swap_the_link(&guest);
    fs::remove_dir_all(guest.path("v1")).expect("removed");
    assert_eq!(guest.lookup(guest.share, "v1"), Err(Errno::STALE));
    guest.forget([&dir]);
    assert_eq!(guest.lookup(guest.share, "v1"), Err(Errno::STALE));
    assert_eq!(guest.lookup(guest.share, "v1"), Err(Errno::NOENT));
}

#[test]
fn what_a_link_says_as_before_is_missing() {
    let mut guest = Guest::new(ShareAccess::ReadOnly);
    let (dir, _) = with_a_link_read(&mut guest);
    assert_eq!(guest.lookup(dir, "other"), Err(Errno::NOENT));
    fs::remove_dir_all(guest.path("v1")).expect("removed");
    assert_eq!(guest.lookup(dir, "key"), Err(Errno::NOENT));
    assert_eq!(guest.lookup(guest.share, "v1"), Err(Errno::NOENT));
}

#[test]
fn a_directory_is_listed_in_pieces() {
    let mut guest = Guest::new(ShareAccess::Writable);
    let mut expected: Vec<String> = (0..100).map(|n| format!("file-{n}")).collect();
    for name in &expected {
        fs::write(guest.path(name), "").expect("write");
    }
    let handle = u64_at(
        &guest
            .call(opcode::OPENDIR, guest.share, &[0; 8])
            .expect("opened"),
        0,
    );
    let (mut found, mut offset) = (Vec::new(), 0);
    loop {
        let body = Body::default()
            .u64(handle)
            .u64(offset)
            .u32(500)
            .zeroes(20)
            .0;
        let entries = guest
            .call(opcode::READDIR, guest.share, &body)
            .expect("read");
        assert!(entries.len() <= 500);
        let mut rest = &entries[..];
        if rest.is_empty() {
            break;
        }
        while !rest.is_empty() {
            offset = u64_at(rest, 8);
            let len = rest[16] as usize;
            found.push(String::from_utf8_lossy(&rest[24..24 + len]).into_owned());
            rest = &rest[(24 + len).next_multiple_of(8)..];
        }
    }
    expected.extend([".".to_owned(), "..".to_owned()]);
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
}

#[test]
fn attributes_that_are_the_host_s_own_stay_hidden() {
    let mut guest = Guest::new(ShareAccess::Writable);
    fs::write(guest.path("f"), "").expect("write");
    let file = guest.lookup(guest.share, "f").expect("there");
    for name in ["trusted.overlay.opaque", "security.selinux", "system.other"] {
        let set = [
            Body::default().u32(1).u32(0).0,
            text(&[name]),
            b"y".to_vec(),
        ]
        .concat();
        assert_eq!(
            guest.call(opcode::SETXATTR, file, &set),
            Err(Errno::OPNOTSUPP)
        );
    }
    let set = [
        Body::default().u32(2).u32(0).0,
        text(&["user.a"]),
        b"yz".to_vec(),
    ]
    .concat();
    if guest.call(opcode::SETXATTR, file, &set) == Err(Errno::OPNOTSUPP) {
        // A temporary directory without them.
        return;
    }
    let get = |size: u32| [Body::default().u32(size).u32(0).0, text(&["user.a"])].concat();
    assert_eq!(
        guest.call(opcode::GETXATTR, file, &get(9)).expect("read"),
        b"yz"
    );
    assert_eq!(
        guest.call(opcode::GETXATTR, file, &get(1)),
        Err(Errno::RANGE)
    );
    let list = guest.call(opcode::LISTXATTR, file, &Body::default().u32(99).u32(0).0);
    assert_eq!(list.expect("listed"), b"user.a\0");
}
