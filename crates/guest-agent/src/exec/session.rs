//! One exec session: its connection, its process, and the bytes between them.
//!
//! ```text
//! New --request--> Starting --exec--> Running --exit--> Draining --> Closing
//!  |                  |                                               ^ ^
//!  +-----refused------+---------------failed--------------------------+ |
//!                     +------------------ killed -----------------------+
//! ```
//!
//! Nothing is read from the process that the host does not take, and nothing
//! from the host that the process does not take: both sides' buffers here are
//! bounded, and a side that stalls holds up its own session only. A connection that
//! ends before all is said ends the process and all it started; what a process leaves
//! behind that ended by itself goes on with its container.

use super::child::Started;
use super::request::winsize;
use crate::cgroup::Cgroup;
use crate::connection::{ConnectionError, Framed};
use crate::container::handover::{Handover, Message, Received};
use crate::container::stdio;
use crate::error::AgentError;
use crate::sys::process;
use guest_api::proto::exec_input::Kind as Input;
use guest_api::proto::exec_output::Kind as Output;
use guest_api::proto::{ExecInput, ExecOutput, ExecRequest, ExecStarted, ExitStatus};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::termios::Winsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use wire::proto::Error as WireAnswer;

/// Most bytes of stdin in one message.
const MAX_STDIN: usize = 64 << 10;
/// Bytes of stdin that wait for the process, beyond which the host is not read.
const INPUT_LIMIT: usize = 128 << 10;
/// Bytes that wait for the host, beyond which the process is not read.
const OUTPUT_LIMIT: usize = 64 << 10;
/// How long after the exit a process that it left behind may hold the output
/// open.
const DRAIN: Duration = Duration::from_secs(2);
/// What a pipe may have held at the exit (its largest size); more comes from
/// processes left behind, and is cut off.
const LATE_BYTES: usize = 1 << 20;
/// How long the host may take to close a connection on which all is said.
const FAREWELL: Duration = Duration::from_secs(10);
/// Rounds before other work gets its turn.
const TURNS: usize = 16;

/// One of a session's descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    Connection,
    Handover,
    Stdin,
    /// Of a terminal: its master, both ways.
    Stdout,
    Stderr,
}

/// What is to be done about a session.
#[derive(Debug)]
pub(crate) enum Progress {
    /// Wait for one of its descriptors.
    Wait,
    /// There is more to do, but others should have their turn.
    Again,
    /// The request has come: answer by `attach` or `refuse`.
    Request(Box<ExecRequest>),
    /// It is over.
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    New,
    Starting,
    Running,
    /// The process has ended; its output is sent.
    Draining(ExitStatus),
    /// All is said; the host is to close the connection.
    Closing,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Session {
    framed: Framed,
    phase: Phase,
    /// Until it is reaped.
    pid: Option<Pid>,
    cgroup: Option<Cgroup>,
    handover: Option<Handover>,
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    terminal: bool,
    /// Wanted before there was a terminal.
    size: Option<Winsize>,
    /// Bytes for stdin, from `written` on.
    input: Vec<u8>,
    written: usize,
    /// The host has closed stdin.
    input_ends: bool,
    /// The host was told of the process's end.
    exit_told: bool,
    /// After [`DRAIN`]: how much output is still taken.
    late: Option<usize>,
    deadline: Option<Instant>,
    pub(crate) container_id: String,
    /// OOM kills in the container before the process was started.
    pub(crate) oom_kills: u64,
}

impl Session {
    /// Of a new connection.
    pub(crate) fn new(framed: Framed) -> Self {
        Self {
            framed,
            phase: Phase::New,
            pid: None,
            cgroup: None,
            handover: None,
            stdin: None,
            stdout: None,
            stderr: None,
            terminal: false,
            size: None,
            input: Vec::new(),
            written: 0,
            input_ends: false,
            exit_told: false,
            late: None,
            deadline: None,
            container_id: String::new(),
            oom_kills: 0,
        }
    }

    /// Its process was made.
    pub(crate) fn attach(&mut self, started: Started, terminal: bool) {
        self.phase = Phase::Starting;
        self.pid = Some(started.pid);
        self.cgroup = Some(started.cgroup);
        self.handover = Some(started.handover);
        self.stdin = started.stdio.stdin;
        self.stdout = started.stdio.stdout;
        self.stderr = started.stdio.stderr;
        self.terminal = terminal;
    }

    /// There will be no process, or no more: tells the host why.
    pub(crate) fn refuse(&mut self, error: WireAnswer) -> Result<(), ConnectionError> {
        self.say(Output::Error(error))?;
        self.close();
        Ok(())
    }

    /// The process was reaped.
    pub(crate) fn on_exit(&mut self, exit: ExitStatus) -> Result<(), ConnectionError> {
        // What it said last may still wait to be read.
        self.listen()?;
        self.handover = None;
        if matches!(self.phase, Phase::Starting | Phase::Running) {
            if self.phase == Phase::Starting {
                self.on_started()?;
            }
            self.phase = Phase::Draining(exit);
            self.stop_input();
            self.deadline = Some(Instant::now() + DRAIN);
        }
        self.pid = None;
        Ok(())
    }

    /// Bytes that wait for the host.
    #[cfg(test)]
    pub(crate) fn backlog(&self) -> usize {
        self.framed.backlog()
    }

    /// When [`Self::on_deadline`] is to be called.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The deadline is over.
    pub(crate) fn on_deadline(&mut self) -> Progress {
        self.deadline = None;
        match self.phase {
            Phase::Draining(_) => {
                self.late = Some(LATE_BYTES);
                Progress::Wait
            }
            Phase::Closing => Progress::Over,
            _ => Progress::Wait,
        }
    }

    /// The session's cgroup, for its end, and whether what is left in it goes on:
    /// otherwise it was killed.
    pub(crate) fn into_cgroup(self) -> Option<(Cgroup, bool)> {
        self.kill_unless_told();
        Some((self.cgroup?, self.exit_told))
    }

    fn kill_unless_told(&self) {
        if let Some(cgroup) = &self.cgroup
            && !self.exit_told
        {
            let _ = cgroup.kill();
        }
    }

    /// One of its descriptors is ready.
    pub(crate) fn on_event(
        &mut self,
        end: End,
        flags: EventFlags,
        scratch: &mut [u8],
    ) -> Result<(), ConnectionError> {
        let gone = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
        match end {
            End::Connection if flags.intersects(gone) && !self.reads_host() => {
                Err(ConnectionError::Closed)
            }
            End::Connection if flags.intersects(EventFlags::IN | gone) => {
                if self.phase == Phase::Closing {
                    self.framed.discard(scratch)
                } else {
                    self.framed.fill(scratch)
                }
            }
            End::Handover => self.listen(),
            _ => Ok(()),
        }
    }

    /// Moves as much as goes without blocking.
    pub(crate) fn advance(&mut self, scratch: &mut [u8]) -> Result<Progress, ConnectionError> {
        if self.phase == Phase::New {
            self.framed.flush()?;
            let request = self.framed.next_message::<ExecRequest>()?;
            return Ok(request.map_or(Progress::Wait, |r| Progress::Request(Box::new(r))));
        }
        for _ in 0..TURNS {
            self.framed.flush()?;
            self.take_messages()?;
            let wrote = self.write_input();
            // The host is told first that the process runs.
            let read = self.phase != Phase::Starting && self.read_output(scratch)?;
            if let Phase::Draining(exit) = self.phase
                && self.stdout.is_none()
                && self.stderr.is_none()
            {
                self.say(Output::Exited(exit))?;
                self.exit_told = true;
                self.close();
            }
            if self.phase == Phase::Closing && !self.framed.wants_write() {
                if self.deadline.is_none() {
                    self.framed.finish();
                    self.deadline = Some(Instant::now() + FAREWELL);
                }
                return Ok(Progress::Wait);
            }
            if !wrote && !read {
                return Ok(Progress::Wait);
            }
        }
        Ok(Progress::Again)
    }

    /// The descriptors to wait for, each with what for.
    pub(crate) fn interests(&self) -> Vec<(End, BorrowedFd<'_>, EventFlags)> {
        let mut ends = Vec::with_capacity(5);
        let mut of = EventFlags::RDHUP;
        of.set(EventFlags::IN, self.reads_host());
        of.set(EventFlags::OUT, self.framed.wants_write());
        ends.push((End::Connection, self.framed.fd(), of));
        if let Some(handover) = &self.handover {
            ends.push((End::Handover, handover.fd(), EventFlags::IN));
        }
        let to_write = self.written < self.input.len();
        if let Some(stdin) = &self.stdin {
            let mut of = EventFlags::empty();
            of.set(EventFlags::OUT, to_write);
            ends.push((End::Stdin, stdin.as_fd(), of));
        }
        let room = self.phase != Phase::Starting && self.framed.backlog() < OUTPUT_LIMIT;
        for (end, fd) in [(End::Stdout, &self.stdout), (End::Stderr, &self.stderr)] {
            if let Some(fd) = fd {
                let mut of = EventFlags::empty();
                of.set(EventFlags::IN, room);
                of.set(EventFlags::OUT, self.terminal && to_write);
                ends.push((end, fd.as_fd(), of));
            }
        }
        ends
    }

    fn reads_host(&self) -> bool {
        self.phase == Phase::Closing || self.input.len() - self.written < INPUT_LIMIT
    }

    fn say(&mut self, kind: Output) -> Result<(), ConnectionError> {
        self.framed.send(&ExecOutput { kind: Some(kind) })
    }

    /// All is said.
    fn close(&mut self) {
        self.phase = Phase::Closing;
        self.deadline = None;
        self.handover = None;
        self.stop_input();
        self.stdout = None;
        self.stderr = None;
        self.kill_unless_told();
    }

    fn stop_input(&mut self) {
        self.stdin = None;
        self.input = Vec::new();
        self.written = 0;
    }

    /// Takes what the process says on its way to its program.
    fn listen(&mut self) -> Result<(), ConnectionError> {
        while let Some(handover) = &self.handover {
            match handover.receive() {
                Received::Nothing => break,
                Received::Message(Message::Ready(_), master) => self.take_terminal(master)?,
                Received::Message(Message::Failed(answer), _) => self.refuse(answer)?,
                Received::Closed => {
                    self.handover = None;
                    if self.phase == Phase::Starting {
                        self.on_started()?;
                        self.phase = Phase::Running;
                    }
                }
            }
        }
        Ok(())
    }

    fn on_started(&mut self) -> Result<(), ConnectionError> {
        let pid = self.pid.map_or(0, |p| p.as_raw_nonzero().get());
        self.say(Output::Started(ExecStarted {
            pid: pid.cast_unsigned(),
        }))
    }

    fn take_terminal(&mut self, master: Option<OwnedFd>) -> Result<(), ConnectionError> {
        let Some(master) = master else {
            return Ok(());
        };
        if let Some(size) = self.size.take() {
            let _ = rustix::termios::tcsetwinsize(&master, size);
        }
        match stdio::of_terminal(master, false) {
            Ok(stdio) => self.stdout = stdio.stdout,
            Err(source) => {
                let error = AgentError::System {
                    doing: "taking over the process's terminal".to_owned(),
                    source,
                    remedy: "",
                };
                self.refuse(error.into_wire())?;
            }
        }
        Ok(())
    }

    fn take_messages(&mut self) -> Result<(), ConnectionError> {
        while self.phase != Phase::Closing && self.reads_host() {
            let Some(message) = self.framed.next_message::<ExecInput>()? else {
                break;
            };
            match message.kind {
                Some(Input::Stdin(bytes)) => self.take_input(&bytes)?,
                Some(Input::StdinClosed(closed)) => self.input_ends |= closed,
                Some(Input::Resize(size)) => self.resize(winsize(&size)),
                Some(Input::Signal(signal)) => self.signal(signal)?,
                // Of a later version.
                None => {}
            }
        }
        Ok(())
    }

    fn take_input(&mut self, bytes: &[u8]) -> Result<(), ConnectionError> {
        if bytes.len() > MAX_STDIN {
            let problem = format!("more than {MAX_STDIN} bytes in one message");
            return self.refuse(AgentError::invalid("stdin", problem).into_wire());
        }
        let wanted = match self.phase {
            Phase::Starting => self.terminal || self.stdin.is_some(),
            Phase::Running if self.terminal => self.stdout.is_some(),
            Phase::Running => self.stdin.is_some(),
            _ => false,
        };
        // A process that does not listen (any more) is no error.
        if wanted && !self.input_ends {
            self.input.extend_from_slice(bytes);
        }
        Ok(())
    }

    fn resize(&mut self, size: Option<Winsize>) {
        if !self.terminal {
            return;
        }
        match (&self.stdout, size) {
            (Some(master), Some(size)) => {
                let _ = rustix::termios::tcsetwinsize(master, size);
            }
            _ => self.size = size,
        }
    }

    fn signal(&mut self, signal: u32) -> Result<(), ConnectionError> {
        let number = i32::try_from(signal).unwrap_or(0);
        if !(1..=64).contains(&number) {
            let problem = format!("{signal} is no signal's number");
            return self.refuse(AgentError::invalid("signal", problem).into_wire());
        }
        if let Some(pid) = self.pid {
            // A process that is a zombie already does not mind.
            let _ = process::send_signal(pid, number);
        }
        Ok(())
    }

    /// Writes waiting bytes to stdin; true if any went.
    fn write_input(&mut self) -> bool {
        let mut wrote = false;
        while self.written < self.input.len() {
            let to = if self.terminal {
                &self.stdout
            } else {
                &self.stdin
            };
            let Some(to) = to else {
                // A terminal that is still to come.
                return wrote;
            };
            match rustix::io::write(to, &self.input[self.written..]) {
                Ok(count) => {
                    self.written += count;
                    wrote = true;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return wrote,
                // Nobody reads it any more.
                Err(_) => {
                    self.stop_input();
                    return true;
                }
            }
        }
        self.input.clear();
        self.written = 0;
        if self.input_ends {
            // A terminal has no end of input but what is typed.
            self.stdin = None;
        }
        wrote
    }

    /// Reads each output once, if there is room; true if there was anything.
    fn read_output(&mut self, scratch: &mut [u8]) -> Result<bool, ConnectionError> {
        let mut read = false;
        for error in [false, true] {
            if self.framed.backlog() >= OUTPUT_LIMIT {
                break;
            }
            let slot = if error {
                &mut self.stderr
            } else {
                &mut self.stdout
            };
            let Some(fd) = slot else { continue };
            let got = match rustix::io::read(fd, &mut *scratch) {
                Ok(got) => got,
                Err(Errno::INTR) => {
                    read = true;
                    continue;
                }
                Err(Errno::AGAIN) if self.late.is_none() => continue,
                // A terminal that nobody has open any more says EIO.
                Err(_) => 0,
            };
            read = true;
            if got == 0 {
                *slot = None;
                continue;
            }
            let bytes = scratch[..got].to_vec();
            self.say(if error {
                Output::Stderr(bytes)
            } else {
                Output::Stdout(bytes)
            })?;
            if let Some(left) = &mut self.late {
                *left = left.saturating_sub(got);
                if *left == 0 {
                    self.stdout = None;
                    self.stderr = None;
                }
            }
        }
        Ok(read)
    }
}
