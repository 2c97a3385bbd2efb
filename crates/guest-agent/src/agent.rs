//! The pod's state and the calls that change it. Knows nothing of connections:
//! answers and events pile up here, and [`crate::server`] delivers them.

use crate::cgroup::Cgroup;
use crate::clock::{self, unix_time_ns};
use crate::container::handover::{Message, Received};
use crate::container::user::Identity;
use crate::container::{
    self, Caller, Container, FailedCreate, Phase, Progress, Removal, request, stdio_of_terminal,
};
use crate::disks::Disks;
use crate::error::{AgentError, Doing};
use crate::events::EventLog;
use crate::exec::request::winsize;
use crate::journals;
use crate::log;
use crate::poller::Poller;
use crate::sandbox::Sandbox;
use crate::stats;
use crate::stream::Slots;
use crate::sys::process;
use crate::volumes;
use guest_api::proto::client_message::Call;
use guest_api::proto::response::Result as Answer;
use guest_api::proto::{
    AttachVolumeRequest, AttachVolumeResponse, CreateContainerRequest, CreateContainerResponse,
    DetachVolumeResponse, ListContainersResponse, RemoveContainerResponse, ResizeTerminalRequest,
    ResizeTerminalResponse, ResizeVolumeRequest, ResizeVolumeResponse, Response,
    SetupSandboxRequest, ShutdownResponse, SignalContainerRequest, SignalContainerResponse,
    StartContainerResponse, UpdateContainerRequest, UpdateContainerResponse, UpdateSandboxRequest,
    UpdateSandboxResponse,
};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::process::{Pid, WaitStatus};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Most containers of a pod, those that ended included.
const MAX_CONTAINERS: usize = 1000;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Agent {
    init_started_ns: u64,
    sandbox: Option<Sandbox>,
    /// Of all containers together.
    pub(crate) cgroup: Cgroup,
    disks: Disks,
    /// The keeper of journals runs.
    keeps_journals: bool,
    pub(crate) containers: BTreeMap<String, Container>,
    removals: Vec<Removal>,
    pub(crate) events: EventLog,
    /// Answers to be delivered, by connection.
    pub(crate) answers: Vec<(u64, Response)>,
    /// Containers whose stream connections are to be looked after: they ended,
    /// or are removed.
    pub(crate) ended: Vec<String>,
    /// Processes reaped that are no container's first.
    pub(crate) others: Vec<(Pid, WaitStatus)>,
    pub(crate) stopping: bool,
}

fn not_set_up() -> AgentError {
    AgentError::Precondition {
        problem: "the sandbox is not set up yet".to_owned(),
        remedy: "call SetupSandbox first",
    }
}

impl Agent {
    /// An empty pod.
    pub(crate) fn new(init_started_ns: u64) -> Self {
        Self {
            init_started_ns,
            sandbox: None,
            cgroup: Cgroup::of_pod(),
            disks: Disks::default(),
            keeps_journals: false,
            containers: BTreeMap::new(),
            removals: Vec::new(),
            events: EventLog::default(),
            answers: Vec::new(),
            ended: Vec::new(),
            others: Vec::new(),
            stopping: false,
        }
    }

    /// Does what `call` asks; the answer comes now or later. Subscribe is the
    /// server's own.
    pub(crate) fn handle(&mut self, caller: Caller, call: Call, poller: &mut Poller) {
        let now = match call {
            Call::SetupSandbox(request) => self.setup_sandbox(&request).map(Some),
            Call::CreateContainer(request) => {
                self.create_container(request, caller, poller);
                Ok(None)
            }
            Call::StartContainer(request) => self.start_container(&request.container_id, caller),
            Call::SignalContainer(request) => self.signal_container(&request).map(Some),
            Call::RemoveContainer(request) => self.remove_container(&request.container_id, caller),
            Call::ListContainers(_) => Ok(Some(self.list_containers())),
            Call::Shutdown(_) => {
                self.stopping = true;
                Ok(Some(Answer::Shutdown(ShutdownResponse {})))
            }
            Call::Subscribe(_) => Ok(None),
            Call::Stats(request) => self.stats(&request.container_id).map(Some),
            Call::UpdateContainer(request) => self.update_container(&request).map(Some),
            Call::UpdateSandbox(request) => self.update_sandbox(&request).map(Some),
            Call::ResizeTerminal(request) => self.resize_terminal(&request).map(Some),
            Call::AttachVolume(request) => self.attach_volume(&request).map(Some),
            Call::DetachVolume(request) => self.detach_volume(&request.name).map(Some),
            Call::ResizeVolume(request) => self.resize_volume(&request).map(Some),
            Call::AdjustClock(request) => {
                clock::adjust(request).map(|told| Some(Answer::AdjustClock(told)))
            }
        };
        match now {
            Ok(Some(answer)) => self.answer(caller, Ok(answer)),
            Ok(None) => {}
            Err(e) => self.answer(caller, Err(e)),
        }
    }

    /// Queues an answer.
    pub(crate) fn answer(&mut self, caller: Caller, result: Result<Answer, AgentError>) {
        let result = result.unwrap_or_else(|e| Answer::Error(e.into_wire()));
        let response = Response {
            id: caller.call,
            result: Some(result),
        };
        self.answers.push((caller.connection, response));
    }

    fn setup_sandbox(&mut self, request: &SetupSandboxRequest) -> Result<Answer, AgentError> {
        if let Some(sandbox) = &self.sandbox {
            return sandbox.repeat(request).map(Answer::SetupSandbox);
        }
        if let Some(resources) = &request.resources {
            self.cgroup.update(resources)?;
        }
        let sandbox = Sandbox::set_up(request, &mut self.disks, self.init_started_ns)?;
        let response = sandbox.response();
        self.sandbox = Some(sandbox);
        Ok(Answer::SetupSandbox(response))
    }

    fn attach_volume(&mut self, request: &AttachVolumeRequest) -> Result<Answer, AgentError> {
        let sandbox = self.sandbox.as_mut().ok_or_else(not_set_up)?;
        if request.file_system == volumes::IN_MEMORY {
            volumes::attach_in_memory(&mut sandbox.volumes, request, &sandbox.users)?;
        } else if sandbox.volumes.contains_key(&request.name) {
            return Err(AgentError::Exists {
                what: format!("the volume {}", request.name),
            });
        } else {
            let disks = &mut self.disks;
            let volumes = &mut sandbox.block_volumes;
            volumes.attach(request, disks, &sandbox.users)?;
            if request.directory.is_some() && !self.keeps_journals {
                journals::keep_small()?;
                self.keeps_journals = true;
            }
        }
        Ok(Answer::AttachVolume(AttachVolumeResponse {}))
    }

    fn detach_volume(&mut self, name: &str) -> Result<Answer, AgentError> {
        let sandbox = self.sandbox.as_mut().ok_or_else(not_set_up)?;
        // Not left to the kernel: it would let a file system go from here while a
        // container still has it.
        let mut containers = self.containers.iter();
        if let Some((id, _)) = containers.find(|(_, c)| c.checked.has_volume(name)) {
            return Err(AgentError::Precondition {
                problem: format!("container {id} has the volume {name}"),
                remedy: "remove the container first",
            });
        }
        sandbox.block_volumes.detach(name, &mut self.disks)?;
        Ok(Answer::DetachVolume(DetachVolumeResponse {}))
    }

    fn resize_volume(&mut self, request: &ResizeVolumeRequest) -> Result<Answer, AgentError> {
        let sandbox = self.sandbox.as_mut().ok_or_else(not_set_up)?;
        let volumes = &mut sandbox.block_volumes;
        volumes.resize(&request.name, request.length, &self.disks)?;
        Ok(Answer::ResizeVolume(ResizeVolumeResponse {}))
    }

    fn create_container(
        &mut self,
        request: CreateContainerRequest,
        caller: Caller,
        poller: &mut Poller,
    ) {
        let id = request.container_id.clone();
        match self.try_create(request, caller) {
            Ok(mut container) => {
                let watched = match &mut container.handover {
                    Some((handover, token)) => poller
                        .add(handover.fd(), EventFlags::IN)
                        .map(|number| *token = number),
                    None => Ok(()),
                };
                self.containers.insert(id.clone(), container);
                if let Err(e) = watched.doing(|| format!("watching container {id}")) {
                    self.on_failed(&id, e);
                }
            }
            Err(failed) if failed.leftovers.is_empty() => self.answer(caller, Err(failed.error)),
            Err(failed) => {
                let mut removal = Removal::of_leftovers(id, failed.leftovers);
                removal.failed_create = Some((caller, failed.error));
                self.removals.push(removal);
            }
        }
    }

    fn try_create(
        &mut self,
        request: CreateContainerRequest,
        caller: Caller,
    ) -> Result<Container, Box<FailedCreate>> {
        let Some(sandbox) = &self.sandbox else {
            return Err(not_set_up().into());
        };
        let id = &request.container_id;
        if self.containers.contains_key(id) || self.removals.iter().any(|r| r.id == *id) {
            return Err(AgentError::Exists {
                what: format!("container {id}"),
            }
            .into());
        }
        if self.containers.len() >= MAX_CONTAINERS {
            return Err(AgentError::Exhausted {
                problem: format!("the pod has {MAX_CONTAINERS} containers"),
                remedy: "remove containers that have ended",
            }
            .into());
        }
        let checked = Rc::new(request::check(request)?);
        container::create(&checked, sandbox, &self.containers, &mut self.disks, caller)
    }

    fn find(&mut self, id: &str) -> Result<&mut Container, AgentError> {
        self.containers
            .get_mut(id)
            .ok_or_else(|| AgentError::NotFound {
                what: format!("container {id}"),
                remedy: "",
            })
    }

    fn start_container(&mut self, id: &str, caller: Caller) -> Result<Option<Answer>, AgentError> {
        let container = self.find(id)?;
        let problem = match (&container.phase, &container.handover) {
            (Phase::Created, Some((handover, _))) => {
                handover
                    .start()
                    .doing(|| format!("starting container {id}"))?;
                container.phase = Phase::Starting(caller);
                return Ok(None);
            }
            (Phase::Creating(_), _) => "is still being created",
            (Phase::Exited(_), _) => "has ended already",
            _ => "was started already",
        };
        Err(AgentError::Precondition {
            problem: format!("container {id} {problem}"),
            remedy: "create another container to run the program again",
        })
    }

    fn signal_container(&mut self, request: &SignalContainerRequest) -> Result<Answer, AgentError> {
        let signal = i32::try_from(request.signal).unwrap_or(0);
        if !(1..=64).contains(&signal) {
            return Err(AgentError::invalid(
                "signal",
                format!("{} is no signal's number", request.signal),
            ));
        }
        let id = &request.container_id;
        let container = self.find(id)?;
        if request.all {
            container.cgroup.signal_all(signal)?;
        } else if let Some(pid) = container.pid {
            process::send_signal(pid, signal)
                .doing(|| format!("sending signal {signal} to container {id}"))?;
        }
        // Of one that has ended: there is nothing left to signal, as intended.
        Ok(Answer::SignalContainer(SignalContainerResponse {}))
    }

    fn remove_container(&mut self, id: &str, caller: Caller) -> Result<Option<Answer>, AgentError> {
        if let Some(removal) = self.removals.iter_mut().find(|r| r.id == id) {
            removal.callers.push(caller);
            return Ok(None);
        }
        let Some(container) = self.containers.remove(id) else {
            return Ok(Some(Answer::RemoveContainer(RemoveContainerResponse {})));
        };
        if let Phase::Creating(other) | Phase::Starting(other) = container.phase {
            let error = AgentError::Precondition {
                problem: format!("container {id} was removed meanwhile"),
                remedy: "",
            };
            self.answer(other, Err(error));
        }
        self.forget(id, container, |removal| removal.callers.push(caller));
        Ok(None)
    }

    /// Begins the removal of a container that is out of the table.
    fn forget(&mut self, id: &str, container: Container, set: impl FnOnce(&mut Removal)) {
        self.events.forget(id);
        self.ended.push(id.to_owned());
        let mut removal = Removal::of(id.to_owned(), container);
        set(&mut removal);
        self.removals.push(removal);
    }

    fn list_containers(&self) -> Answer {
        Answer::ListContainers(ListContainersResponse {
            containers: self
                .containers
                .iter()
                .filter(|(_, c)| !matches!(c.phase, Phase::Creating(_)))
                .map(|(id, c)| c.state(id))
                .collect(),
        })
    }

    fn update_container(&mut self, request: &UpdateContainerRequest) -> Result<Answer, AgentError> {
        let container = self.find(&request.container_id)?;
        let resources = request.resources.clone().unwrap_or_default();
        container.cgroup.update(&resources)?;
        Ok(Answer::UpdateContainer(UpdateContainerResponse {}))
    }

    fn update_sandbox(&mut self, request: &UpdateSandboxRequest) -> Result<Answer, AgentError> {
        if self.sandbox.is_none() {
            return Err(not_set_up());
        }
        let resources = request.resources.clone().unwrap_or_default();
        self.cgroup.update(&resources)?;
        Ok(Answer::UpdateSandbox(UpdateSandboxResponse {}))
    }

    fn resize_terminal(&mut self, request: &ResizeTerminalRequest) -> Result<Answer, AgentError> {
        let id = &request.container_id;
        let container = self.find(id)?;
        if !container.terminal {
            return Err(AgentError::Precondition {
                problem: format!("container {id} has no terminal"),
                remedy: "",
            });
        }
        // One that has ended has nothing left to resize.
        let size = request.size.as_ref().and_then(winsize);
        if let (Some(master), Some(size)) = (&container.master, size) {
            rustix::termios::tcsetwinsize(master, size)
                .doing(|| format!("resizing the terminal of container {id}"))?;
        }
        Ok(Answer::ResizeTerminal(ResizeTerminalResponse {}))
    }

    fn stats(&self, container_id: &str) -> Result<Answer, AgentError> {
        if self.sandbox.is_none() {
            return Err(not_set_up());
        }
        let asked = (!container_id.is_empty()).then_some(container_id);
        if let Some(id) = asked
            && !self.containers.contains_key(id)
        {
            return Err(AgentError::NotFound {
                what: format!("container {id}"),
                remedy: "",
            });
        }
        let containers = self
            .containers
            .iter()
            .filter(|(id, _)| asked.is_none_or(|asked| asked == *id))
            .map(|(id, c)| (id.as_str(), &c.cgroup, c.layer.as_str()));
        let pod = asked.is_none().then_some(&self.cgroup);
        Ok(Answer::Stats(stats::read(pod, containers)))
    }

    /// A container's first process has said something, or is gone from its
    /// channel.
    pub(crate) fn on_handover(&mut self, id: &str) {
        loop {
            let Some(container) = self.containers.get_mut(id) else {
                return;
            };
            let Some((handover, _)) = &container.handover else {
                return;
            };
            match handover.receive() {
                Received::Nothing => return,
                Received::Message(Message::Ready(identity), master) => {
                    self.on_ready(id, identity, master);
                }
                Received::Message(Message::Failed(answer), _) => {
                    self.on_failed(id, AgentError::Reported(answer));
                }
                Received::Closed => {
                    self.on_closed(id);
                    return;
                }
            }
        }
    }

    fn on_ready(&mut self, id: &str, identity: Identity, master: Option<std::os::fd::OwnedFd>) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let told = guest_api::proto::Identity {
            uid: identity.uid,
            gid: identity.gid,
            groups: identity.groups.clone(),
        };
        container.identity = Some(Rc::new(identity));
        if let Some(master) = master {
            let copy = rustix::io::fcntl_dupfd_cloexec(&master, 3);
            let stdio = stdio_of_terminal(master, container.with_stdin);
            match copy.and_then(|copy| Ok((copy, stdio?))) {
                Ok((copy, stdio)) => {
                    container.master = Some(copy);
                    container.streams = Slots::new(stdio.stdin, stdio.stdout, stdio.stderr);
                }
                Err(source) => {
                    let error = AgentError::System {
                        doing: "taking over the container's terminal".to_owned(),
                        source,
                        remedy: "",
                    };
                    return self.on_failed(id, error);
                }
            }
        }
        if let Phase::Creating(caller) = container.phase {
            container.phase = Phase::Created;
            let answer = Answer::CreateContainer(CreateContainerResponse {
                identity: Some(told),
            });
            self.answer(caller, Ok(answer));
        }
    }

    fn on_failed(&mut self, id: &str, error: AgentError) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        match container.phase {
            Phase::Creating(caller) => {
                if let Some(container) = self.containers.remove(id) {
                    self.forget(id, container, |removal| {
                        removal.failed_create = Some((caller, error));
                    });
                }
            }
            Phase::Starting(caller) => {
                container.phase = Phase::Exited(None);
                self.answer(caller, Err(error));
            }
            _ => log::warn(&format!("container {id}: {error}")),
        }
    }

    /// The channel's other end is closed: by the exec, or because the process
    /// has ended.
    fn on_closed(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        container.handover = None;
        match container.phase {
            Phase::Creating(_) => {
                let error = AgentError::Precondition {
                    problem: format!(
                        "the first process of container {id} ended while it was being created"
                    ),
                    remedy: "give the container more memory",
                };
                self.on_failed(id, error);
            }
            Phase::Starting(caller) => {
                container.phase = Phase::Running;
                container.started_at_ns = unix_time_ns();
                let response = StartContainerResponse {
                    pid: container.host_pid,
                    started_at_ns: container.started_at_ns,
                };
                self.answer(caller, Ok(Answer::StartContainer(response)));
            }
            _ => {}
        }
    }

    /// A child of PID 1 was reaped.
    pub(crate) fn on_reaped(&mut self, pid: Pid, status: WaitStatus) {
        if let Some(removal) = self.removals.iter_mut().find(|r| r.pid == Some(pid)) {
            removal.pid = None;
            return;
        }
        let found = self.containers.iter().find(|(_, c)| c.pid == Some(pid));
        let Some(id) = found.map(|(id, _)| id.clone()) else {
            self.others.push((pid, status));
            return;
        };
        // What it said last may still wait to be read.
        self.on_handover(&id);
        if let Some(removal) = self.removals.iter_mut().find(|r| r.pid == Some(pid)) {
            removal.pid = None;
            return;
        }
        let Some(container) = self.containers.get_mut(&id) else {
            return;
        };
        container.pid = None;
        container.handover = None;
        container.master = None;
        let now = unix_time_ns();
        let exit = if matches!(container.phase, Phase::Exited(None)) {
            container::start_failed(now)
        } else {
            container::exit_status(status, container.cgroup.oom_killed(), now)
        };
        if container.shares_pids
            && let Err(e) = container.cgroup.kill()
        {
            log::warn(&format!("container {id}: {e}"));
        }
        container.phase = Phase::Exited(Some(exit));
        log::warn(&guest_api::exit_line(&id, &exit));
        self.events.exited(&id, exit);
        self.ended.push(id);
    }

    /// Goes on with removals. Returns whether any can go on at once, and whether
    /// any is left.
    pub(crate) fn advance_removals(&mut self) -> (bool, bool) {
        let mut busy = false;
        let removals = std::mem::take(&mut self.removals);
        for mut removal in removals {
            match removal.advance(&mut self.disks) {
                Progress::Busy => {
                    busy = true;
                    self.removals.push(removal);
                }
                Progress::Waiting => self.removals.push(removal),
                Progress::Done(result) => self.on_removed(removal, result),
            }
        }
        (busy, !self.removals.is_empty())
    }

    fn on_removed(&mut self, removal: Removal, result: Result<(), AgentError>) {
        let id = &removal.id;
        let failure = result.err().map(|e| {
            log::warn(&format!("container {id}: {e}"));
            e.into_wire()
        });
        if let Some((caller, error)) = removal.failed_create {
            self.answer(caller, Err(error));
        }
        for caller in removal.callers {
            let result = match &failure {
                None => Ok(Answer::RemoveContainer(RemoveContainerResponse {})),
                Some(answer) => Err(AgentError::Reported(answer.clone())),
            };
            self.answer(caller, result);
        }
    }

    /// Reaps every child that has ended.
    pub(crate) fn reap(&mut self) {
        loop {
            match rustix::process::wait(rustix::process::WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => self.on_reaped(pid, status),
                Err(Errno::INTR) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }
}
