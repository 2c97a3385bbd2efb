//! The event loop's part for exec sessions: which descriptor wakes which of them
//! up, their deadlines, and the cgroups they leave.

use super::{Server, Source};
use crate::cgroup::Cgroup;
use crate::clock::unix_time_ns;
use crate::connection::{ConnectionError, Framed};
use crate::container::exit_status;
use crate::error::AgentError;
use crate::exec::session::{End, Progress, Session};
use crate::exec::{child, request};
use crate::log;
use guest_api::proto::ExecRequest;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::process::{Pid, WaitStatus};
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroI32;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// How soon the removal of a cgroup is tried again: at first, and at most.
const FIRST_RETRY: Duration = Duration::from_millis(5);
const LAST_RETRY: Duration = Duration::from_secs(1);

/// All sessions and what they left.
#[derive(Debug, Default)]
pub(super) struct Execs {
    pub(super) sessions: BTreeMap<u64, Open>,
    next: u64,
    /// The last number in a cgroup's name.
    number: u64,
    pub(super) by_pid: BTreeMap<NonZeroI32, u64>,
    deadlines: BTreeSet<(Instant, u64)>,
    /// Sessions that had to give way before they were done.
    unfinished: Vec<u64>,
    leaving: Vec<Leaving>,
}

#[derive(Debug)]
pub(super) struct Open {
    pub(super) session: Session,
    watches: BTreeMap<End, Watch>,
    deadline: Option<Instant>,
    pid: Option<Pid>,
}

/// A descriptor's registration.
#[derive(Debug)]
struct Watch {
    token: u64,
    /// What it waits for; nothing once it has fired.
    armed: EventFlags,
}

/// A cgroup whose processes are dying, or going on in the container's.
#[derive(Debug)]
struct Leaving {
    cgroup: Cgroup,
    goes_on: bool,
    again: Instant,
    wait: Duration,
}

impl Execs {
    pub(super) fn len(&self) -> usize {
        self.sessions.len()
    }

    pub(super) fn is_busy(&self) -> bool {
        !self.unfinished.is_empty()
    }

    /// `timeout`, or less where something is due before.
    pub(super) fn limit(&self, timeout: Option<Duration>) -> Option<Duration> {
        let deadline = self.deadlines.first().map(|(at, _)| *at);
        let next = self.leaving.iter().map(|l| l.again).chain(deadline).min();
        let Some(next) = next else { return timeout };
        let left = next.saturating_duration_since(Instant::now());
        Some(timeout.map_or(left, |timeout| timeout.min(left)))
    }

    /// Tries to remove the cgroups whose time has come.
    fn remove_cgroups(&mut self, now: Instant) {
        self.leaving.retain_mut(|leaving| {
            if leaving.again > now {
                return true;
            }
            match leaving.cgroup.remove() {
                Ok(()) => false,
                Err(Errno::BUSY | Errno::NOTEMPTY) => {
                    // One may have come in from the container meanwhile.
                    let _ = if leaving.goes_on {
                        leaving.cgroup.hand_up()
                    } else {
                        leaving.cgroup.kill()
                    };
                    leaving.wait = (leaving.wait * 2).min(LAST_RETRY);
                    leaving.again = now + leaving.wait;
                    true
                }
                Err(e) => {
                    log::warn(&format!("removing an exec session's cgroup: {e}"));
                    false
                }
            }
        });
    }
}

impl Server {
    pub(super) fn add_exec(&mut self, socket: OwnedFd) {
        let framed = match Framed::new(socket) {
            Ok(framed) => framed,
            Err(e) => return log::warn(&format!("an exec connection was closed: {e}")),
        };
        let id = self.execs.next;
        self.execs.next += 1;
        let open = Open {
            session: Session::new(framed),
            watches: BTreeMap::new(),
            deadline: None,
            pid: None,
        };
        self.execs.sessions.insert(id, open);
        self.drive_exec(id);
    }

    pub(super) fn on_exec(&mut self, id: u64, end: End, flags: EventFlags) {
        let Some(open) = self.execs.sessions.get_mut(&id) else {
            return;
        };
        if let Some(watch) = open.watches.get_mut(&end) {
            watch.armed = EventFlags::empty();
        }
        match open.session.on_event(end, flags, &mut self.scratch) {
            Ok(()) => self.drive_exec(id),
            Err(e) => self.end_exec(id, Some(&e)),
        }
    }

    /// What is due without a descriptor's doing.
    pub(super) fn go_on_with_execs(&mut self) {
        for id in std::mem::take(&mut self.execs.unfinished) {
            self.drive_exec(id);
        }
        if self.execs.deadlines.is_empty() && self.execs.leaving.is_empty() {
            return;
        }
        let now = Instant::now();
        while let Some((at, id)) = self.execs.deadlines.first().copied()
            && at <= now
        {
            self.execs.deadlines.pop_first();
            let Some(open) = self.execs.sessions.get_mut(&id) else {
                continue;
            };
            open.deadline = None;
            match open.session.on_deadline() {
                Progress::Over => self.end_exec(id, None),
                _ => self.drive_exec(id),
            }
        }
        self.execs.remove_cgroups(now);
    }

    /// Processes that are no container's first have been reaped.
    pub(super) fn on_others_reaped(&mut self) {
        for (pid, status) in std::mem::take(&mut self.agent.others) {
            self.on_exec_reaped(pid, status);
        }
    }

    fn on_exec_reaped(&mut self, pid: Pid, status: WaitStatus) {
        let Some(id) = self.execs.by_pid.remove(&pid.as_raw_nonzero()) else {
            return;
        };
        let Some(open) = self.execs.sessions.get_mut(&id) else {
            return;
        };
        open.pid = None;
        let container = self.agent.containers.get(&open.session.container_id);
        let killed = status.terminating_signal() == Some(libc::SIGKILL);
        let oom_killed =
            killed && container.is_some_and(|c| c.cgroup.oom_kills() > open.session.oom_kills);
        let exit = exit_status(status, oom_killed, unix_time_ns());
        match open.session.on_exit(exit) {
            Ok(()) => self.drive_exec(id),
            Err(e) => self.end_exec(id, Some(&e)),
        }
    }

    fn drive_exec(&mut self, id: u64) {
        while let Some(open) = self.execs.sessions.get_mut(&id) {
            match open.session.advance(&mut self.scratch) {
                Ok(Progress::Wait) => {
                    if let Err(e) = self.watch_exec(id) {
                        self.end_exec(id, Some(&e.into()));
                    }
                }
                Ok(Progress::Again) => self.execs.unfinished.push(id),
                Ok(Progress::Over) => self.end_exec(id, None),
                Ok(Progress::Request(request)) => {
                    if let Err(e) = self.start_exec(id, *request) {
                        self.end_exec(id, Some(&e));
                    }
                    continue;
                }
                Err(e) => self.end_exec(id, Some(&e)),
            }
            return;
        }
    }

    fn start_exec(&mut self, id: u64, request: ExecRequest) -> Result<(), ConnectionError> {
        let number = &mut self.execs.number;
        let containers = &self.agent.containers;
        let started = request::check(request).and_then(|plan| {
            let container_id = &plan.container_id;
            let container = containers
                .get(container_id)
                .ok_or_else(|| AgentError::NotFound {
                    what: format!("container {container_id}"),
                    remedy: "",
                })?;
            let oom_kills = container.cgroup.oom_kills();
            let started = child::start(&plan, container, number)?;
            Ok((plan, started, oom_kills))
        });
        let Some(open) = self.execs.sessions.get_mut(&id) else {
            return Ok(());
        };
        match started {
            Ok((plan, started, oom_kills)) => {
                open.pid = Some(started.pid);
                self.execs.by_pid.insert(started.pid.as_raw_nonzero(), id);
                open.session.container_id = plan.container_id;
                open.session.oom_kills = oom_kills;
                open.session.attach(started, plan.terminal);
                Ok(())
            }
            Err(e) => open.session.refuse(e.into_wire()),
        }
    }

    /// Waits for what the session wants to be woken up by. Each registration
    /// fires once, then is armed again: what hangs up while nobody wants to read
    /// it must not wake the loop for ever.
    fn watch_exec(&mut self, id: u64) -> Result<(), Errno> {
        let Some(open) = self.execs.sessions.get_mut(&id) else {
            return Ok(());
        };
        let interests = open.session.interests();
        for (end, fd, wanted) in &interests {
            match open.watches.get_mut(end) {
                None => {
                    let token = self.poller.add(fd, *wanted | EventFlags::ONESHOT)?;
                    self.sources.insert(token, Source::Exec(id, *end));
                    let armed = *wanted;
                    open.watches.insert(*end, Watch { token, armed });
                }
                Some(watch) if !wanted.is_empty() && watch.armed != *wanted => {
                    let flags = *wanted | EventFlags::ONESHOT;
                    self.poller.watch(fd, watch.token, flags)?;
                    watch.armed = *wanted;
                }
                Some(_) => {}
            }
        }
        let sources = &mut self.sources;
        open.watches.retain(|end, watch| {
            let open = interests.iter().any(|(e, ..)| e == end);
            if !open {
                sources.remove(&watch.token);
            }
            open
        });
        let deadline = open.session.deadline();
        if deadline != open.deadline {
            if let Some(old) = open.deadline {
                self.execs.deadlines.remove(&(old, id));
            }
            if let Some(new) = deadline {
                self.execs.deadlines.insert((new, id));
            }
            open.deadline = deadline;
        }
        Ok(())
    }

    /// Ends a session, and its processes unless the first ended by itself.
    fn end_exec(&mut self, id: u64, why: Option<&ConnectionError>) {
        let Some(open) = self.execs.sessions.remove(&id) else {
            return;
        };
        if let Some(why) = why
            && !matches!(why, ConnectionError::Closed)
        {
            log::warn(&format!("an exec connection was closed: {why}"));
        }
        for watch in open.watches.values() {
            self.sources.remove(&watch.token);
        }
        if let Some(deadline) = open.deadline {
            self.execs.deadlines.remove(&(deadline, id));
        }
        if let Some(pid) = open.pid {
            self.execs.by_pid.remove(&pid.as_raw_nonzero());
        }
        if let Some((cgroup, goes_on)) = open.session.into_cgroup() {
            self.execs.leaving.push(Leaving {
                cgroup,
                goes_on,
                again: Instant::now(),
                wait: FIRST_RETRY,
            });
        }
    }
}
