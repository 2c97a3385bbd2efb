//! Requests that are as they should be, then changed by chance, in a tree full of
//! ways out. A short run is an ordinary test; set `FS_FUZZ_SECONDS` for a long one:
//! `FS_FUZZ_SECONDS=600 cargo test -p virtio-devices --lib fuzz -- --nocapture`.

use super::*;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Rounds of a short run, each with a tree of its own.
const ROUNDS: u64 = 60;
/// Requests in a round.
const REQUESTS: usize = 120;
/// What no answer may hold: it is written outside of the shares only.
const SECRET: &[u8] = b"known outside only";
/// Most bytes that a request may have allocated: the host's disk is to survive.
const ALLOCATED: u64 = 0xffff;

const OPCODES: &[u32] = &[
    opcode::LOOKUP,
    opcode::FORGET,
    opcode::GETATTR,
    opcode::SETATTR,
    opcode::READLINK,
    opcode::SYMLINK,
    opcode::MKNOD,
    opcode::MKDIR,
    opcode::UNLINK,
    opcode::RMDIR,
    opcode::RENAME,
    opcode::LINK,
    opcode::OPEN,
    opcode::READ,
    opcode::WRITE,
    opcode::STATFS,
    opcode::RELEASE,
    opcode::FSYNC,
    opcode::SETXATTR,
    opcode::GETXATTR,
    opcode::LISTXATTR,
    opcode::REMOVEXATTR,
    opcode::INIT,
    opcode::OPENDIR,
    opcode::READDIR,
    opcode::RELEASEDIR,
    opcode::FSYNCDIR,
    opcode::CREATE,
    opcode::INTERRUPT,
    opcode::DESTROY,
    opcode::BATCH_FORGET,
    opcode::FALLOCATE,
    opcode::RENAME2,
    opcode::LSEEK,
    opcode::COPY_FILE_RANGE,
    // None of these is served.
    0,
    31,
    48,
    4096,
];

/// Numbers by chance, the same from the same seed (xorshift).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 20
    }

    fn below(&mut self, limit: usize) -> usize {
        let next = usize::try_from(self.next()).expect("64 bits");
        next % limit.max(1)
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// Small, or at a bound.
    fn number(&mut self) -> u64 {
        let at_bounds = [0, 1, 5, 4096, 1 << 31, 1 << 32, 1 << 62, 1 << 63, u64::MAX];
        match self.below(3) {
            0 => self.of(&at_bounds),
            _ => self.next() & 0xff,
        }
    }

    fn number32(&mut self) -> u32 {
        u32::try_from(self.number() & u64::from(u32::MAX)).expect("masked")
    }

    /// A name with its NUL: one of the tree, a new one, or one that leads elsewhere.
    fn name(&mut self) -> Vec<u8> {
        let long = self.below(40);
        if long < 2 {
            return [vec![b'n'; 255 + long], vec![0]].concat();
        }
        let names: &[&[u8]] = &[
            b"f",
            b"f",
            b"d",
            b"d",
            b"e",
            b"p",
            b"out",
            b"out",
            b"absolute",
            b"up",
            b"loop",
            b"empty",
            b"new",
            b"newer",
            b"beside",
            b"..",
            b".",
            b"",
            b"d/f",
            b"../beside/f",
            b"out/f",
            b"/etc/passwd",
            b"f\0/../beside",
        ];
        [self.of(names), b"\0"].concat()
    }

    /// Changes bytes in some places: flips, cuts, repeats, numbers at their bounds.
    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len());
            match self.below(6) {
                0 => bytes.truncate(at),
                1 => bytes.extend(bytes[at..].to_vec()),
                2 => {
                    let end = (at + self.below(9)).min(bytes.len());
                    bytes.drain(at..end);
                }
                3 => {
                    let end = (at + 4).min(bytes.len());
                    bytes[at..end].fill([0, 1, 0x7f, 0x80, 0xff][self.below(5)]);
                }
                _ if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                _ => bytes.push(0),
            }
        }
    }
}

/// What the driver was told of, to ask about it.
struct Known {
    nodes: Vec<u64>,
    handles: Vec<u64>,
}

impl Known {
    fn node(&self, chance: &mut Chance) -> u64 {
        if chance.one_in(20) {
            return chance.number();
        }
        // Those of late are the likelier to be there still.
        let recent = self.nodes.len().saturating_sub(LIMITS.nodes);
        if chance.one_in(3) {
            self.nodes[chance.below(2)]
        } else {
            chance.of(&self.nodes[recent..])
        }
    }

    fn handle(&self, chance: &mut Chance) -> u64 {
        let recent = self.handles.len().saturating_sub(LIMITS.handles);
        match self.handles.get(recent..) {
            Some(recent) if !recent.is_empty() && !chance.one_in(20) => chance.of(recent),
            _ => chance.number() & 15,
        }
    }

    fn learn(&mut self, opcode: u32, answer: &[u8]) {
        match opcode {
            opcode::OPEN | opcode::OPENDIR => self.handles.push(u64_at(answer, 0)),
            _ if answer.len() >= 128 && opcode != opcode::READ => {
                self.nodes.push(u64_at(answer, 0));
                if opcode == opcode::CREATE {
                    self.handles.push(u64_at(answer, 128));
                }
            }
            _ => {}
        }
    }
}

/// What follows the header, as a driver would send it.
fn body(opcode: u32, chance: &mut Chance, known: &Known) -> Vec<u8> {
    let b = Body::default();
    let mode = chance.of(&[0o644, 0o755, 0o4755, 0o2777, 0]);
    let flags = chance.of(&[RDONLY, WRONLY, 2, WRONLY | O_TRUNC, 2 | O_APPEND, 0o200_000]);
    match opcode {
        opcode::LOOKUP | opcode::UNLINK | opcode::RMDIR => chance.name(),
        opcode::SYMLINK => {
            let targets = ["../beside/f", "..", "/", "f", "d"];
            [chance.name(), text(&[chance.of(&targets)])].concat()
        }
        opcode::MKNOD => {
            let kind = chance.of(&[0o100_000, 0o010_000, 0o140_000, 0o020_000, 0o060_000]);
            let head = b.u32(kind | mode).u32(0x103).zeroes(8).0;
            [head, chance.name()].concat()
        }
        opcode::MKDIR => [b.u32(mode).u32(0).0, chance.name()].concat(),
        opcode::RENAME | opcode::RENAME2 => {
            let mut head = b.u64(known.node(chance));
            if opcode == opcode::RENAME2 {
                head = head.u32(chance.of(&[0, 1, 2, 4])).u32(0);
            }
            [head.0, chance.name(), chance.name()].concat()
        }
        opcode::LINK => [b.u64(known.node(chance)).0, chance.name()].concat(),
        opcode::CREATE => {
            let head = b.u32(flags).u32(mode).zeroes(8).0;
            [head, chance.name()].concat()
        }
        opcode::FORGET => b.u64(chance.number()).0,
        opcode::BATCH_FORGET => {
            let nodes: Vec<u64> = (0..4).map(|_| known.node(chance)).collect();
            let head = b.u32(4).u32(0);
            nodes.iter().fold(head, |b, node| b.u64(*node).u64(9)).0
        }
        opcode::SETXATTR | opcode::GETXATTR | opcode::LISTXATTR | opcode::REMOVEXATTR => {
            attribute(opcode, chance)
        }
        _ => of_a_file(opcode, flags, chance, known),
    }
}

fn attribute(opcode: u32, chance: &mut Chance) -> Vec<u8> {
    let names = [
        "user.a",
        "trusted.a",
        "security.a",
        "system.posix_acl_access",
    ];
    let name = text(&[chance.of(&names)]);
    match opcode {
        opcode::SETXATTR => {
            let head = Body::default().u32(4).u32(chance.of(&[0, 1, 2])).0;
            [head, name, b"text".to_vec()].concat()
        }
        opcode::REMOVEXATTR => name,
        _ => [Body::default().u32(chance.number32()).u32(0).0, name].concat(),
    }
}

fn of_a_file(opcode: u32, flags: u32, chance: &mut Chance, known: &Known) -> Vec<u8> {
    let b = Body::default();
    let handle = known.handle(chance);
    match opcode {
        opcode::GETATTR => b.u32(chance.of(&[0, 1])).u32(0).u64(handle).0,
        opcode::SETATTR => {
            // Any of mode, owners, size and times, of a node or an open file.
            let head = b.u32(chance.number32() & 0x9ff | 1 << chance.below(9));
            let head = head.u32(0).u64(handle).u64(chance.number()).zeroes(44);
            head.u32(0o7777).u32(0).u32(1000).u32(1000).u32(0).0
        }
        opcode::OPEN | opcode::OPENDIR => b.u32(flags).u32(0).0,
        opcode::READ | opcode::READDIR => {
            let head = b.u64(handle).u64(chance.number() & 0xff);
            head.u32(chance.number32()).zeroes(20).0
        }
        opcode::WRITE => {
            let head = b.u64(handle).u64(chance.number()).u32(4).u32(0);
            [head.u64(0).u32(flags).u32(0).0, b"text".to_vec()].concat()
        }
        opcode::RELEASE | opcode::RELEASEDIR => b.u64(handle).zeroes(16).0,
        opcode::FSYNC | opcode::FSYNCDIR => b.u64(handle).u32(1).u32(0).0,
        opcode::FALLOCATE => {
            let head = b.u64(handle).u64(chance.number()).u64(chance.number());
            head.u32(chance.of(&[0, 1, 3, 16])).u32(0).0
        }
        opcode::LSEEK => {
            let head = b.u64(handle).u64(chance.number());
            head.u32(chance.of(&[3, 4, 0])).u32(0).0
        }
        opcode::COPY_FILE_RANGE => {
            let head = b.u64(handle).u64(chance.number()).u64(known.node(chance));
            let to = known.handle(chance);
            head.u64(to).u64(chance.number()).u64(9).u64(0).0
        }
        opcode::INIT => {
            let head = b.u32(7).u32(41).u32(65536).u32(u32::MAX);
            head.u32(u32::MAX).zeroes(44).0
        }
        _ => b.zeroes(8).0,
    }
}

/// Cuts down the number at a place.
fn bound(body: &mut [u8], at: usize) {
    if let Some(field) = body.get_mut(at..at + 8) {
        let number = u64_at(field, 0) & ALLOCATED;
        field.copy_from_slice(&number.to_le_bytes());
    }
}

/// Two shares, the first of them writable, and ways that lead out of them.
fn tree(guest: &mut Guest) {
    for dir in ["a/d/e/d/e", "a/empty", "b/d", "beside/d"] {
        fs::create_dir_all(guest.path(dir)).expect("made");
    }
    for file in ["a/f", "a/d/f", "a/d/e/f", "b/f"] {
        fs::write(guest.path(file), "text").expect("write");
    }
    for file in ["secret", "beside/f", "beside/d/f"] {
        fs::write(guest.path(file), SECRET).expect("write");
        let mode = fs::Permissions::from_mode(0o666);
        fs::set_permissions(guest.path(file), mode).expect("open to all");
    }
    let absolute = guest.path("beside/f");
    for (target, link) in [
        (Path::new("../beside"), "a/out"),
        (Path::new("../../beside/f"), "a/d/out"),
        (&absolute, "a/absolute"),
        (Path::new(".."), "a/up"),
        (Path::new("loop"), "a/loop"),
        (Path::new("../a/f"), "b/out"),
    ] {
        symlink(target, guest.path(link)).expect("a link");
    }
    mknodat(CWD, guest.path("a/p"), FileType::Fifo, Mode::RWXU, 0).expect("a pipe");
    guest.shares.detach("s").expect("detached");
    for (name, access) in [("a", ShareAccess::Writable), ("b", ShareAccess::ReadOnly)] {
        let root = path_fd(&guest.path(name));
        guest.shares.attach(name, root, access).expect("attached");
    }
    guest.share = guest.lookup(ROOT_NODE, "a").expect("the share");
}

/// A path, its number of names, when anything of its inode changed last, contents.
type Seen = (PathBuf, u64, (i64, i64), Vec<u8>);

/// All that may not change: names, links, contents, and when anything of an inode
/// changed last, its number of names and its attributes included.
fn outside(top: &Path) -> Vec<Seen> {
    let mut found = Vec::new();
    let mut rest = vec![top.to_owned()];
    while let Some(path) = rest.pop() {
        if path == top.join("a") {
            continue;
        }
        let meta = fs::symlink_metadata(&path).expect("still there");
        let content = if meta.is_dir() {
            let entries = fs::read_dir(&path).expect("listed");
            rest.extend(entries.map(|entry| entry.expect("listed").path()));
            Vec::new()
        } else if meta.is_file() {
            fs::read(&path).expect("read")
        } else {
            let target = fs::read_link(&path).expect("a link");
            target.into_os_string().into_encoded_bytes()
        };
        let changed = (meta.ctime(), meta.ctime_nsec());
        found.push((path, meta.nlink(), changed, content));
    }
    found.sort();
    found
}

/// Descriptors of this process that lead into a directory. Other tests run in it.
fn descriptors_into(top: &Path) -> usize {
    let all = fs::read_dir("/proc/self/fd").expect("listed");
    let leads = all.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    leads.filter(|target| target.starts_with(top)).count()
}

/// One tree, asked many things; how many were answered with success.
fn round(seed: u64) -> usize {
    let mut chance = Chance(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut guest = Guest::new(ShareAccess::Writable);
    tree(&mut guest);
    let second = guest.lookup(ROOT_NODE, "b").expect("the share");
    let before = outside(guest.dir.path());
    let held = descriptors_into(guest.dir.path());
    let mut known = Known {
        nodes: vec![guest.share, second, ROOT_NODE],
        handles: Vec::new(),
    };
    let mut done = 0;
    for number in 0..REQUESTS {
        let often = [opcode::LOOKUP, opcode::OPEN, opcode::SETATTR];
        let opcodes = if chance.one_in(3) { &often } else { OPCODES };
        let mut opcode = chance.of(opcodes);
        if [opcode::INIT, opcode::DESTROY].contains(&opcode) && !chance.one_in(4) {
            // All that was learned is gone after these.
            opcode = opcode::LOOKUP;
        }
        let mut body = body(opcode, &mut chance, &known);
        if chance.one_in(2) {
            chance.mutate(&mut body);
        }
        let amounts: &[usize] = match opcode {
            opcode::FALLOCATE => &[8, 16],
            opcode::COPY_FILE_RANGE => &[40],
            _ => &[],
        };
        for at in amounts {
            bound(&mut body, *at);
        }
        let user = chance.of(&[0, 0, 1000, u32::MAX]);
        let header = Body::default().u32(0).u32(opcode).u64(9);
        let header = header.u64(known.node(&mut chance)).u32(user).u32(user);
        let request = [header.u32(chance.number32()).u32(0).0, body].concat();
        if let Some(Ok(answer)) = guest.send(&request) {
            let told = answer.windows(SECRET.len()).any(|bytes| bytes == SECRET);
            assert!(!told, "seed {seed}, request {number}: {request:?}");
            known.learn(opcode, &answer);
            done += 1;
        }
    }
    let (nodes, handles) = guest.harness.device.table_counts();
    assert!(nodes <= LIMITS.nodes && handles <= LIMITS.handles);
    assert_eq!(outside(guest.dir.path()), before, "seed {seed}");
    guest.call(opcode::DESTROY, 0, &[]).expect("destroyed");
    assert_eq!(descriptors_into(guest.dir.path()), held, "seed {seed}");
    guest.lookup(ROOT_NODE, "a").expect("still there");
    done
}

#[test]
fn hostile_requests_reach_nothing_outside_and_leave_nothing_open() {
    let seconds = std::env::var("FS_FUZZ_SECONDS").ok();
    let seconds = seconds.and_then(|text| text.parse().ok());
    let until = Instant::now() + Duration::from_secs(seconds.unwrap_or(0));
    let mut rounds = 0;
    let mut done = 0;
    while rounds < ROUNDS || Instant::now() < until {
        done += round(rounds);
        rounds += 1;
    }
    let asked = usize::try_from(rounds).expect("few") * REQUESTS;
    println!("{asked} requests, {done} of them answered with success");
    // Else most of the code was never reached.
    assert!(done > asked / 10, "{done} of {asked}");
}
