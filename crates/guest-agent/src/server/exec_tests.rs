//! Exec sessions as a host sees them: real processes in a namespace and cgroup
//! of their own, the frames over a socket pair. Needs root and cgroup v2; each
//! test runs in a process of its own, as the agent forks without regard to other
//! threads.

use super::*;
use crate::cgroup::Cgroup;
use crate::container::request as container_request;
use crate::container::user::Identity;
use crate::container::{Container, Phase};
use crate::fs_mount;
use crate::stream::Slots;
use crate::sys::process;
use guest_api::proto::exec_input::Kind as Input;
use guest_api::proto::exec_output::Kind as Output;
use guest_api::proto::{
    CreateContainerRequest, DiskExtent, ExecInput, ExecOutput, ExecRequest, Process, Rlimit,
    TerminalSize,
};
use nix::sched::CloneFlags;
use nix::sys::signal::SigSet;
use rustix::mount::{MountAttrFlags as Attr, MountPropagationFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::Pid;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::Instant;
use wire::proto::Hello;
use wire::proto::error::Code;

const MARK: &str = "SPHERULE_EXEC_TEST";
const ID: &str = "c1";

/// Runs `body` in a process that has only this test's thread at work.
fn alone(name: &str, body: impl FnOnce(&mut Guest)) {
    if !rustix::process::getuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    if std::env::var(MARK).as_deref() == Ok(name) {
        let mut guest = Guest::new();
        return body(&mut guest);
    }
    let status = std::process::Command::new("/proc/self/exe")
        .args([
            "--exact",
            &format!("server::exec_tests::{name}"),
            "--nocapture",
        ])
        .env(MARK, name)
        .status()
        .unwrap();
    assert!(status.success(), "{name}: {status}");
}

/// A server, and a container that runs.
struct Guest {
    server: Server,
    cgroup: String,
    first: Pid,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let cgroup = Cgroup::at(self.cgroup.clone());
        let deadline = Instant::now() + Duration::from_secs(10);
        while cgroup.remove().is_err() && Instant::now() < deadline {
            let _ = cgroup.kill();
            self.server.agent.reap();
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Guest {
    fn new() -> Self {
        nix::sched::unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).unwrap();
        let hierarchy = fs_mount::new("cgroup2", &[], Attr::empty()).unwrap();
        fs_mount::attach_at(hierarchy, "/mnt").unwrap();
        let cgroup = format!("/mnt/spherule-test-{}", std::process::id());
        std::fs::create_dir(&cgroup).unwrap();
        let signals = SignalFd::new(&SigSet::empty()).unwrap();
        let mut server = Server::new(Agent::new(0), signals).unwrap();
        let container = container(&cgroup);
        let first = container.pid.unwrap();
        server.agent.containers.insert(ID.to_owned(), container);
        Self {
            server,
            cgroup,
            first,
        }
    }

    fn container(&mut self) -> &mut Container {
        self.server.agent.containers.get_mut(ID).unwrap()
    }

    fn turn(&mut self) {
        self.server.turn(Some(Duration::from_millis(2))).unwrap();
        self.server.agent.reap();
        self.server.on_others_reaped();
    }

    fn connect(&mut self) -> Client {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        rustix::io::ioctl_fionbio(&ours, true).unwrap();
        rustix::io::ioctl_fionbio(&theirs, true).unwrap();
        self.server.add_connection(ours, Port::Exec);
        let mut client = Client {
            stream: UnixStream::from(theirs),
            decoder: wire::FrameDecoder::default(),
            to_send: wire::encode(&wire::hello("test")).unwrap(),
            greeted: false,
            closed: false,
            reads: true,
            seen: Seen::default(),
        };
        client.step();
        client
    }

    fn exec(&mut self, request: ExecRequest) -> Client {
        let mut client = self.connect();
        client.send(&request);
        client
    }

    fn shell(&mut self, script: &str) -> Client {
        self.exec(shell(script))
    }

    /// Serves until `done`, which is to happen.
    fn until(&mut self, client: &mut Client, done: impl Fn(&Seen) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !done(&client.seen) {
            assert!(client.seen.error.is_none(), "{:?}", client.seen.error);
            assert!(Instant::now() < deadline, "{:?}", client.seen);
            client.step();
            self.turn();
        }
    }

    fn finish(&mut self, mut client: Client) -> Seen {
        self.until(&mut client, |seen| {
            seen.exit.is_some() || seen.error.is_some()
        });
        client.seen
    }

    /// Processes of the container besides its first.
    fn others(&self) -> usize {
        let mut count = 0;
        for entry in std::fs::read_dir(&self.cgroup).unwrap() {
            let procs = entry.unwrap().path().join("cgroup.procs");
            count += std::fs::read_to_string(procs).map_or(0, |text| text.lines().count());
        }
        count
    }

    /// No session, cgroup or process is left of earlier sessions.
    fn settle(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            self.turn();
            let cgroups = std::fs::read_dir(&self.cgroup)
                .unwrap()
                .filter(|e| e.as_ref().unwrap().file_type().unwrap().is_dir())
                .count();
            if self.server.execs.len() == 0 && cgroups == 0 {
                return;
            }
            assert!(Instant::now() < deadline, "{cgroups} cgroups are left");
        }
    }
}

fn shell(script: &str) -> ExecRequest {
    ExecRequest {
        container_id: ID.to_owned(),
        args: ["sh", "-c", script].map(str::to_owned).to_vec(),
        ..ExecRequest::default()
    }
}

fn container(cgroup: &str) -> Container {
    let request = CreateContainerRequest {
        container_id: ID.to_owned(),
        image: Some(DiskExtent {
            device: "vda".to_owned(),
            offset: 0,
            length: 4096,
        }),
        process: Some(Process {
            args: vec!["sleep".to_owned()],
            env: vec!["A=container".to_owned(), "B=kept".to_owned()],
            cwd: "/usr".to_owned(),
            rlimits: vec![Rlimit {
                kind: "RLIMIT_NOFILE".to_owned(),
                soft: 77,
                hard: 78,
            }],
            no_new_privileges: true,
            ..Process::default()
        }),
        ..CreateContainerRequest::default()
    };
    let checked = container_request::check(request).unwrap();
    let group = Cgroup::at(cgroup.to_owned());
    let fd = group.open().unwrap();
    let (ready, say_ready) = rustix::pipe::pipe().unwrap();
    let namespaces = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID;
    let pid = process::fork_into(namespaces, Some(fd.as_fd()), &[say_ready.as_fd()], || {
        process::reap_by_itself();
        let options = [("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620")];
        let mounts = [
            fs_mount::new("proc", &[], Attr::empty()),
            fs_mount::new("devpts", &options, Attr::empty()),
        ];
        for (mount, place) in mounts.into_iter().zip(["/proc", "/dev/pts"]) {
            fs_mount::attach_at(mount.unwrap(), place).unwrap();
        }
        rustix::io::write(&say_ready, &[1]).unwrap();
        process::wait_without_descriptors()
    })
    .unwrap();
    drop(say_ready);
    assert_eq!(rustix::io::read(&ready, &mut [0; 1]), Ok(1));
    Container {
        users: std::rc::Rc::new(crate::users::Users::Guest),
        phase: Phase::Running,
        identity: Some(Rc::new(Identity {
            uid: 1234,
            gid: 2345,
            groups: vec![7, 8],
            home: "/home/test".to_owned(),
        })),
        pid: Some(pid),
        host_pid: 1,
        started_at_ns: 1,
        handover: None,
        streams: Slots::new(None, None, None),
        terminal: false,
        master: None,
        with_stdin: false,
        cgroup: group,
        images: Vec::new(),
        layer: String::new(),
        shares_pids: false,
        checked: Rc::new(checked),
    }
}

/// What the host has got.
#[derive(Debug, Default)]
struct Seen {
    pid: Option<u32>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    exit: Option<guest_api::proto::ExitStatus>,
    error: Option<wire::proto::Error>,
}

impl Seen {
    fn text(&self) -> String {
        String::from_utf8(self.stdout.clone()).unwrap()
    }

    fn code(&self) -> u32 {
        self.exit.unwrap().code
    }
}

struct Client {
    stream: UnixStream,
    decoder: wire::FrameDecoder,
    to_send: Vec<u8>,
    greeted: bool,
    closed: bool,
    reads: bool,
    seen: Seen,
}

impl Client {
    fn send(&mut self, message: &impl prost::Message) {
        self.to_send.extend(wire::encode(message).unwrap());
    }

    fn input(&mut self, kind: Input) {
        self.send(&ExecInput { kind: Some(kind) });
    }

    /// Writes and reads what goes at once.
    fn step(&mut self) {
        while let Ok(count @ 1..) = self.stream.write(&self.to_send) {
            self.to_send.drain(..count);
        }
        let mut bytes = vec![0; 64 << 10];
        while self.reads {
            match self.stream.read(&mut bytes) {
                Ok(0) => self.closed = true,
                Ok(count) => {
                    self.decoder.push(&bytes[..count]);
                    continue;
                }
                Err(_) => {}
            }
            break;
        }
        if !self.greeted {
            let hello = self.decoder.next_message::<Hello>().unwrap();
            self.greeted = hello.is_some();
        }
        while self.greeted {
            let Some(output) = self.decoder.next_message::<ExecOutput>().unwrap() else {
                break;
            };
            assert!(self.seen.exit.is_none(), "something came after the exit");
            match output.kind.unwrap() {
                Output::Started(started) => self.seen.pid = Some(started.pid),
                Output::Stdout(bytes) => self.seen.stdout.extend(bytes),
                Output::Stderr(bytes) => self.seen.stderr.extend(bytes),
                Output::Exited(exit) => self.seen.exit = Some(exit),
                Output::Error(error) => self.seen.error = Some(error),
            }
        }
    }
}

#[test]
fn a_process_is_like_the_containers_own() {
    alone("a_process_is_like_the_containers_own", |guest| {
        let mut request = shell(
            "id -u; id -g; id -G; pwd; echo $A $B $C $HOME; ulimit -Sn; ulimit -Hn; \
             grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status; tr '\\0' ' ' </proc/1/comm; \
             ls /proc/self/fd | tr '\\n' ' '; echo err >&2; exit 7",
        );
        request.env = vec!["A=exec".to_owned(), "C=new".to_owned()];
        let client = guest.exec(request);
        let seen = guest.finish(client);
        let text = seen.text();
        let lines: Vec<&str> = text.lines().collect();
        let want = [
            "1234",
            "2345",
            "2345 7 8",
            "/usr",
            "exec kept new /home/test",
            "77",
            "78",
            "CapEff:\t0000000000000000",
            "CapBnd:\t0000000000000000",
            "NoNewPrivs:\t1",
        ];
        assert_eq!(lines[..10], want);
        // Nothing but stdio, and what ls opens.
        assert!(text.ends_with("0 1 2 3 "), "{text}");
        assert_eq!((seen.code(), seen.stderr.as_slice()), (7, &b"err\n"[..]));
        assert!(seen.pid.unwrap() > 1);
        guest.settle();
    });
}

#[test]
fn ten_mebibytes_come_back_unchanged() {
    alone("ten_mebibytes_come_back_unchanged", |guest| {
        let request = ExecRequest {
            stdin: true,
            args: vec!["cat".to_owned()],
            ..shell("")
        };
        let mut client = guest.exec(request);
        let mut state = 1_u64;
        let mut bytes = Vec::with_capacity(10 << 20);
        while bytes.len() < 10 << 20 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            bytes.extend_from_slice(&state.to_le_bytes());
        }
        for chunk in bytes.chunks(64 << 10) {
            client.input(Input::Stdin(chunk.to_vec()));
        }
        client.input(Input::StdinClosed(true));
        let seen = guest.finish(client);
        assert!(
            seen.stdout == bytes,
            "{} bytes came back",
            seen.stdout.len()
        );
        assert_eq!(seen.code(), 0);
        guest.settle();
    });
}

#[test]
fn stdin_ends_where_the_host_says() {
    alone("stdin_ends_where_the_host_says", |guest| {
        // Without stdin there is nothing to read.
        let client = guest.shell("wc -c");
        assert_eq!(guest.finish(client).text().trim(), "0");
        let mut request = shell("cat; echo end");
        request.stdin = true;
        let mut client = guest.exec(request);
        client.input(Input::Stdin(b"one ".to_vec()));
        guest.until(&mut client, |seen| seen.stdout == b"one ");
        client.input(Input::Stdin(b"two ".to_vec()));
        client.input(Input::StdinClosed(true));
        client.input(Input::Stdin(b"three".to_vec()));
        assert_eq!(guest.finish(client).text(), "one two end\n");
        // Input that nobody reads does not hold up the exit.
        let mut request = shell("exec <&-; sleep 0.2; exit 3");
        request.stdin = true;
        let mut client = guest.exec(request);
        for _ in 0..64 {
            client.input(Input::Stdin(vec![b'x'; 64 << 10]));
        }
        assert_eq!(guest.finish(client).code(), 3);
        guest.settle();
    });
}

#[test]
fn a_terminal_has_the_size_the_host_gives_it() {
    alone("a_terminal_has_the_size_the_host_gives_it", |guest| {
        let size = |columns, rows| TerminalSize { columns, rows };
        let request = ExecRequest {
            terminal: true,
            stdin: true,
            size: Some(size(91, 17)),
            ..shell(
                "stty -echo; tty; stty size; read line; stty size; echo $TERM; ps -o tty= -p $$",
            )
        };
        let mut client = guest.exec(request);
        guest.until(&mut client, |seen| {
            String::from_utf8_lossy(&seen.stdout).contains("17 91\r\n")
        });
        client.input(Input::Resize(size(120, 40)));
        client.input(Input::Stdin(b"go\n".to_vec()));
        let seen = guest.finish(client);
        let text = seen.text();
        assert!(text.starts_with("/dev/pts/0\r\n17 91\r\n"), "{text:?}");
        assert!(text.contains("40 120\r\nxterm\r\npts/0"), "{text:?}");
        assert_eq!(seen.code(), 0);
        guest.settle();
    });
}

#[test]
fn a_terminal_passes_control_characters_on() {
    alone("a_terminal_passes_control_characters_on", |guest| {
        let request = ExecRequest {
            terminal: true,
            stdin: true,
            ..shell("trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.05; done")
        };
        let mut client = guest.exec(request);
        guest.until(&mut client, |seen| {
            String::from_utf8_lossy(&seen.stdout).contains("ready")
        });
        client.input(Input::Stdin(vec![3]));
        let seen = guest.finish(client);
        assert!(seen.text().contains("caught"));
        assert_eq!(seen.code(), 5);
    });
}

#[test]
fn a_signal_reaches_the_process() {
    alone("a_signal_reaches_the_process", |guest| {
        let mut client = guest.shell("trap 'exit 9' TERM; echo; while :; do sleep 0.05; done");
        guest.until(&mut client, |seen| !seen.stdout.is_empty());
        client.input(Input::Signal(15));
        assert_eq!(guest.finish(client).code(), 9);
        let mut client = guest.shell("kill -STOP $$; exit 1");
        guest.until(&mut client, |seen| seen.pid.is_some());
        client.input(Input::Signal(9));
        let exit = guest.finish(client).exit.unwrap();
        assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, 9, false));
        let mut client = guest.shell("sleep 1000");
        client.input(Input::Signal(65));
        assert_eq!(guest.finish(client).error.unwrap().field, "signal");
        guest.settle();
    });
}

#[test]
fn what_cannot_run_says_why() {
    alone("what_cannot_run_says_why", |guest| {
        let mut request = shell("");
        request.args = vec!["foo".to_owned()];
        let client = guest.exec(request);
        let error = guest.finish(client).error.unwrap();
        assert_eq!(
            (error.message.as_str(), error.field.as_str()),
            (
                "exec: \"foo\": executable file not found in $PATH",
                "args[0]"
            )
        );
        let mut request = shell("");
        request.cwd = "/nonexistent".to_owned();
        let client = guest.exec(request);
        assert_eq!(guest.finish(client).error.unwrap().field, "cwd");
        let mut request = shell("");
        request.container_id = "ghost".to_owned();
        let client = guest.exec(request);
        assert_eq!(guest.finish(client).error.unwrap().code(), Code::NotFound);
        guest.container().phase = Phase::Created;
        let client = guest.shell("true");
        let error = guest.finish(client).error.unwrap();
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(error.message.contains("created but not started"));
        guest.settle();
    });
}

#[test]
fn a_host_that_leaves_at_any_moment_leaves_no_process() {
    alone(
        "a_host_that_leaves_at_any_moment_leaves_no_process",
        |guest| {
            let script = "(setsid sleep 1000 &) ; sleep 1000 & trap '' TERM HUP; echo up; wait; \
                      sleep 1000";
            for terminal in [false, true] {
                for turns in 0..12 {
                    let mut request = shell(script);
                    request.terminal = terminal;
                    let mut client = guest.connect();
                    if turns > 0 {
                        client.send(&request);
                    }
                    for _ in 0..turns {
                        client.step();
                        guest.turn();
                    }
                    drop(client);
                    guest.settle();
                }
                let mut request = shell(script);
                request.terminal = terminal;
                let mut client = guest.exec(request);
                guest.until(&mut client, |seen| !seen.stdout.is_empty());
                assert!(guest.others() >= 3, "{} processes", guest.others());
                drop(client);
                guest.settle();
            }
        },
    );
}

#[test]
fn what_a_process_leaves_behind_holds_up_its_exit_for_a_while_only() {
    alone(
        "what_a_process_leaves_behind_holds_up_its_exit_for_a_while_only",
        |guest| {
            let started = Instant::now();
            let mut client = guest.shell("sleep 1000 & echo out; exit 4");
            guest.until(&mut client, |seen| seen.exit.is_some());
            assert_eq!(
                (client.seen.text().as_str(), client.seen.code()),
                ("out\n", 4)
            );
            assert!(started.elapsed() >= Duration::from_secs(2));
            drop(client);
            // One that writes for ever is cut off.
            let client = guest.shell("yes & exit 0");
            assert_eq!(guest.finish(client).code(), 0);
            // One that let go of the output does not hold it up.
            let client = guest.shell("sleep 1000 >/dev/null 2>&1 & exit 6");
            assert_eq!(guest.finish(client).code(), 6);
            guest.settle();
            // All but the one whose output was cut off go on, as the container's.
            let procs = format!("{}/cgroup.procs", guest.cgroup);
            let left = std::fs::read_to_string(procs).unwrap();
            assert_eq!(left.lines().count(), 1 + 2, "{left}");
        },
    );
}

#[test]
fn a_host_that_does_not_read_holds_up_its_own_session_only() {
    alone(
        "a_host_that_does_not_read_holds_up_its_own_session_only",
        |guest| {
            let mut stalled = guest.shell("head -c 3000000 /dev/zero; echo done >&2");
            stalled.reads = false;
            for _ in 0..20 {
                stalled.step();
                guest.turn();
            }
            let client = guest.shell("echo quick");
            assert_eq!(guest.finish(client).text(), "quick\n");
            // The agent keeps no more than its limit.
            let sessions = guest.server.execs.sessions.values();
            let backlogs: Vec<usize> = sessions.map(|o| o.session.backlog()).collect();
            assert!(backlogs.iter().all(|b| *b <= 200 << 10), "{backlogs:?}");
            stalled.reads = true;
            let seen = guest.finish(stalled);
            assert_eq!((seen.stdout.len(), seen.code()), (3_000_000, 0));
            // Output that waits at the exit is not lost, however long it waits.
            let mut late = guest.shell("head -c 60000 /dev/zero; exit 2");
            late.reads = false;
            let until = Instant::now() + Duration::from_millis(2500);
            while Instant::now() < until {
                late.step();
                guest.turn();
            }
            late.reads = true;
            let seen = guest.finish(late);
            assert_eq!((seen.stdout.len(), seen.code()), (60_000, 2));
            guest.settle();
        },
    );
}

#[test]
fn the_containers_end_is_the_sessions_end() {
    alone("the_containers_end_is_the_sessions_end", |guest| {
        let mut client = guest.shell("echo up; sleep 1000");
        guest.until(&mut client, |seen| !seen.stdout.is_empty());
        process::send_signal(guest.first, libc::SIGKILL).unwrap();
        let seen = guest.finish(client);
        assert_eq!(seen.code(), 137);
        let client = guest.shell("true");
        let error = guest.finish(client).error.unwrap();
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(error.message.contains("ended"), "{}", error.message);
        guest.settle();
    });
}

#[test]
fn many_sessions_leave_nothing() {
    alone("many_sessions_leave_nothing", |guest| {
        let client = guest.shell("exit 1");
        guest.finish(client);
        guest.settle();
        let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let (fds, sources) = (count(), guest.server.sources.len());
        for round in 0..30 {
            let mut clients: Vec<Client> = (0..10)
                .map(|n| {
                    let mut request = shell("sleep 0.1 >/dev/null 2>&1 & echo x");
                    request.terminal = (round + n) % 3 == 0;
                    request.stdin = n % 2 == 0;
                    guest.exec(request)
                })
                .collect();
            while clients.iter().any(|c| c.seen.exit.is_none()) {
                clients.iter_mut().for_each(Client::step);
                guest.turn();
            }
        }
        guest.settle();
        assert_eq!((count(), guest.server.sources.len()), (fds, sources));
        assert_eq!(guest.others(), 0);
        assert!(guest.server.execs.by_pid.is_empty());
    });
}

#[test]
fn a_malformed_frame_ends_its_session_only() {
    alone("a_malformed_frame_ends_its_session_only", |guest| {
        let mut bad = guest.shell("sleep 1000");
        guest.until(&mut bad, |seen| seen.pid.is_some());
        bad.to_send.extend([2, 0, 0, 0, 0xff, 0xff]);
        while !bad.closed {
            bad.step();
            guest.turn();
        }
        let mut long = guest.shell("sleep 1000");
        long.input(Input::Stdin(vec![0; (64 << 10) + 1]));
        assert_eq!(guest.finish(long).error.unwrap().field, "stdin");
        let client = guest.shell("echo fine");
        assert_eq!(guest.finish(client).text(), "fine\n");
        guest.settle();
    });
}
