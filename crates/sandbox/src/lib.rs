//! The life of sandboxes (micro-VMs) and their containers on a host.
//!
//! Shaped so that a CRI server and our own pod engine can both drive it; knows
//! neither of them, nor KVM. [`Sandboxes`] is the whole of it:
//!
//! | call | what it does |
//! |------|--------------|
//! | [`Sandboxes::open`] | recovers what the records know: adopts running VMs, undoes half-made ones; returns at the latest after two seconds, and does the rest beside the calls |
//! | [`Sandboxes::run_sandbox`] | network, scratch disk, VMM, boot, agent, set-up; all or nothing |
//! | [`Sandboxes::create_container`] | image leased and attached, made by the agent |
//! | [`Sandboxes::start_container`] | log attached, started |
//! | [`Sandboxes::stop_container`] | signal, grace, SIGKILL; returns when the exit is recorded |
//! | [`Sandboxes::remove_container`] | kills it if need be, frees all it used |
//! | [`Sandboxes::exec`], [`Sandboxes::exec_sync`] | runs a command in a container |
//! | [`Sandboxes::reopen_log`] | goes on in a new log file |
//! | [`Sandboxes::update_container`], [`Sandboxes::update_sandbox`] | changes limits while it runs |
//! | [`Sandboxes::attach_volume`], [`Sandboxes::detach_volume`] | block volumes, while it runs |
//! | [`Sandboxes::resize_volume`], [`Sandboxes::limit_volume`] | changes a block volume in use |
//! | [`Sandboxes::stats`], [`Sandboxes::container_stats`] | figures of the guest and of its VM |
//! | [`Sandboxes::stop_sandbox`] | ends the VM, gives its addresses back; logs and records stay |
//! | [`Sandboxes::network_status`] | what is missing for pods to have a network |
//! | [`Sandboxes::remove_sandbox`] | everything, the record last |
//! | [`Sandboxes::subscribe`] | every change of a state, numbered |
//!
//! Stops and removals are idempotent. Work goes on when its caller goes away: a
//! dropped future cancels nothing, [`Sandboxes::stop_sandbox`] does. Commands and
//! figures are for their caller alone, and end with it.
//!
//! A resource is put on its record's undo stack before it is made (`record`,
//! `undo`), so a daemon that is killed leaves nothing unknown behind. One watcher
//! per VM (`watch`) records exits and the VM's end. Lock order: `registry`.

mod attach;
pub mod capabilities;
mod cgroup;
mod clock;
mod config;
mod container;
mod death;
mod disk_template;
mod empty_dirs;
mod error;
mod events;
mod exec;
mod guest;
mod guest_clock;
mod images;
mod live;
mod mountinfo;
mod name_files;
mod network;
mod orphans;
mod port_forward;
mod private_mount;
mod process_end;
mod record;
mod recorded;
mod recover;
mod registry;
mod remove;
mod run;
mod scratch;
mod shares;
mod signal;
mod spec;
mod stats;
mod stop;
mod undo;
mod update;
pub mod usage;
mod vm_plan;
mod vmm;
mod volumes;
mod watch;

pub use attach::AttachSpec;
pub use cgroup::{memory_limit_mib, vmm_memory_mib};
pub use config::{Config, Timeouts};
pub use error::{SandboxError, chain};
pub use events::{Change, Event};
pub use exec::{
    ExecExit, ExecInput, ExecOutput, ExecResult, ExecSession, ExecSpec, FileCopy, TerminalSize,
};
pub use record::{
    BlockVolume, Container, ContainerState, DiskId, EmptyDirPlace, Exit, NotReadyReason, Sandbox,
    SandboxState, Stage, Step, UserIds, VmmId, VolumeState, stages,
};
pub use scratch::{DEFAULT_SCRATCH_MIB, MAX_SCRATCH_MIB, MIN_SCRATCH_MIB};
pub use signal::{signal_name, signal_number};
pub use spec::{
    BlockVolumeSpec, ContainerSpec, DeviceOf, DeviceSpec, DirectorySpec, DiskPath, DnsSpec, Engine,
    FileSystem, HostAlias, HostMount, IdRange, IoLimits, Medium, MountSource, MountSpec,
    NetworkSpec, PathRules, PathVolume, PidNamespace, ProcessSpec, RateLimit, ResourceSpec,
    RlimitSpec, SandboxSpec, ShownAs, UserNamespace, VolumeSpec,
};

pub use volumes::{VolumeSource, is_block_device};

pub use stats::{ContainerStats, GuestTotals, SandboxStats};
/// What kind of fault the guest's agent says it is.
pub use vm_launcher::Code as GuestCode;
pub use vm_launcher::HostUsage;
pub use vm_spec::MAX_VOLUME_BAYS;

use events::EventHub;
use image_store::ImageStore;
use images::Images;
use pod_network::{Network, NetworkList};
use recorded::Recorded;
use registry::{ContainerEntry, Entry, Registry};
use state_store::{StateStore, Table};
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, broadcast};

/// Version of both records' layout.
const RECORD_VERSION: u32 = 1;

/// The sandboxes of this host. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sandboxes {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) images: Images,
    pub(crate) sandboxes: Table<Sandbox>,
    pub(crate) containers: Table<Container>,
    pub(crate) registry: Registry,
    pub(crate) events: EventHub,
    pub(crate) network: Arc<Network>,
    /// A permit a sandbox while it is made, in the order of the requests.
    pub(crate) boots: Semaphore,
}

impl Inner {
    pub(crate) fn sandbox_entry(&self, id: &str, sandbox: Sandbox) -> Entry {
        Entry::new(Recorded::new(self.sandboxes.clone(), id, sandbox))
    }

    pub(crate) fn announce_sandbox(&self, id: &str, state: SandboxState) {
        self.events.announce(id, Change::Sandbox(state));
    }

    pub(crate) fn announce_container(&self, sandbox: &str, id: &str, state: ContainerState) {
        let change = Change::Container(id.to_owned(), state);
        self.events.announce(sandbox, change);
    }

    /// Records a sandbox's state, then announces it.
    pub(crate) async fn set_sandbox_state(
        &self,
        entry: &Entry,
        state: SandboxState,
        reason: Option<NotReadyReason>,
    ) -> Result<(), SandboxError> {
        entry
            .record
            .update(|sandbox| sandbox.set_state(state, reason))
            .await?;
        self.announce_sandbox(&entry.id, state);
        Ok(())
    }

    /// Forgets a sandbox of which nothing is left.
    pub(crate) async fn forget_sandbox(&self, entry: &Entry) -> Result<(), SandboxError> {
        entry.record.forget().await?;
        self.registry.remove(&entry.id);
        self.events.announce(&entry.id, Change::SandboxRemoved);
        Ok(())
    }
}

/// Runs work that its caller's end must not interrupt.
async fn detached<T: Send + 'static>(
    id: &str,
    work: impl Future<Output = Result<T, SandboxError>> + Send + 'static,
) -> Result<T, SandboxError> {
    tokio::spawn(work)
        .await
        .unwrap_or_else(|_| Err(SandboxError::TaskDied(id.to_owned())))
}

/// Does work that may wait for a disk, on a thread where waiting is no harm.
async fn blocking<T: Send + 'static>(
    id: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, SandboxError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| SandboxError::TaskDied(id.to_owned()))
}

/// A new id: 32 hexadecimal digits from the system's generator.
pub fn new_id() -> String {
    use std::fmt::Write as _;
    let mut bytes = [0u8; 16];
    // Fails only where the arguments are wrong; interrupted calls are repeated.
    while rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())
        != Ok(bytes.len())
    {}
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl Sandboxes {
    /// Opens the records in `state` and brings them in line with the world. What takes
    /// longer than a moment goes on beside the calls; those that need a VM which has
    /// not been heard from wait for it, then are [`SandboxError::Recovering`]. The
    /// store's lock keeps a second daemon out.
    ///
    /// # Errors
    /// If the settings cannot work or the records cannot be read.
    pub async fn open(
        config: Config,
        state: &StateStore,
        images: ImageStore,
    ) -> Result<Self, SandboxError> {
        let config = config.prepare()?;
        let boots = config.max_parallel_boots.clamp(1, Semaphore::MAX_PERMITS);
        let network = network::open(&config)?;
        let inner = Arc::new(Inner {
            config,
            network: Arc::new(network),
            images: Images::new(images),
            sandboxes: state.table("sandboxes", RECORD_VERSION),
            containers: state.table("containers", RECORD_VERSION),
            registry: Registry::default(),
            events: EventHub::new(),
            boots: Semaphore::new(boots),
        });
        recover::recover(&inner).await?;
        Ok(Self { inner })
    }

    /// The sandbox of a call that needs its VM.
    async fn entry(&self, id: &str) -> Result<Arc<Entry>, SandboxError> {
        let entry = self.inner.registry.get(id)?;
        let limit = self.inner.config.timeouts.recovery;
        entry.recovered_within(limit).await?;
        Ok(entry)
    }

    /// The container, with its sandbox, of a call that needs its VM.
    async fn item(&self, id: &str) -> Result<(Arc<Entry>, Arc<ContainerEntry>), SandboxError> {
        let (entry, item) = self.inner.registry.container(id)?;
        let limit = self.inner.config.timeouts.recovery;
        entry.recovered_within(limit).await?;
        Ok((entry, item))
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// Makes a sandbox and returns it Ready; where many are asked for at once, a
    /// few are made at a time, in the order of the calls. If it fails nothing of it stays; its
    /// id and name are free again.
    ///
    /// # Errors
    /// [`SandboxError::Exists`] while one has the id or name.
    pub async fn run_sandbox(&self, spec: SandboxSpec) -> Result<Sandbox, SandboxError> {
        let inner = Arc::clone(&self.inner);
        // Before anything is awaited: a stop that follows finds it.
        let entry = run::reserve(&inner, spec)?;
        let id = entry.id.clone();
        detached(&id, async move { run::make(&inner, &entry).await }).await
    }

    /// Ends a sandbox's VM and with it whatever still runs in it; one that is
    /// being made is undone. Of an unknown one: success.
    ///
    /// # Errors
    /// If a record cannot be written.
    pub async fn stop_sandbox(&self, id: &str) -> Result<(), SandboxError> {
        let Ok(entry) = self.inner.registry.get(id) else {
            return Ok(());
        };
        let inner = Arc::clone(&self.inner);
        detached(id, async move { stop::stop(&inner, &entry).await }).await
    }

    /// Stops a sandbox, then removes its containers, its files and its record.
    /// Of an unknown one: success.
    ///
    /// # Errors
    /// If something could not be removed; the rest stays recorded.
    pub async fn remove_sandbox(&self, id: &str) -> Result<(), SandboxError> {
        let Ok(entry) = self.inner.registry.get(id) else {
            return Ok(());
        };
        let inner = Arc::clone(&self.inner);
        detached(id, async move { remove::remove(&inner, &entry).await }).await
    }

    /// Makes a container; nothing of it runs yet. If it fails nothing of it stays.
    ///
    /// # Errors
    /// [`SandboxError::Exists`] with the id of the container that has the name and
    /// attempt.
    pub async fn create_container(
        &self,
        sandbox_id: &str,
        spec: ContainerSpec,
    ) -> Result<Container, SandboxError> {
        let entry = self.entry(sandbox_id).await?;
        let inner = Arc::clone(&self.inner);
        detached(sandbox_id, async move {
            container::create(&inner, &entry, spec).await
        })
        .await
    }

    /// Starts a created container.
    ///
    /// # Errors
    /// If it is not Created, or cannot be started: then it still is.
    pub async fn start_container(&self, id: &str) -> Result<(), SandboxError> {
        let (entry, item) = self.item(id).await?;
        let inner = Arc::clone(&self.inner);
        detached(
            id,
            async move { container::start(&inner, &entry, &item).await },
        )
        .await
    }

    /// Sends `signal` (`None`: the container's own), waits for `grace`, then kills
    /// what is left. Returns when the exit is recorded. Of an unknown container, or
    /// one that does not run: success.
    ///
    /// # Errors
    /// If the guest does not end it.
    pub async fn stop_container(
        &self,
        id: &str,
        grace: Duration,
        signal: Option<u32>,
    ) -> Result<(), SandboxError> {
        let (entry, item) = match self.item(id).await {
            Err(SandboxError::NoSuchContainer(_)) => return Ok(()),
            found => found?,
        };
        let inner = Arc::clone(&self.inner);
        detached(id, async move {
            container::stop(&inner, &entry, &item, grace, signal).await
        })
        .await
    }

    /// Removes a container, a running one after killing it; its log file stays.
    /// Of an unknown one: success.
    ///
    /// # Errors
    /// If something could not be removed; the rest stays recorded.
    pub async fn remove_container(&self, id: &str) -> Result<(), SandboxError> {
        let (entry, item) = match self.item(id).await {
            Err(SandboxError::NoSuchContainer(_)) => return Ok(()),
            found => found?,
        };
        let inner = Arc::clone(&self.inner);
        detached(
            id,
            async move { container::remove(&inner, &entry, &item).await },
        )
        .await
    }

    /// Runs a command in a running container, with input and output of its own;
    /// returns when it runs. Dropping the session's receiver kills it.
    ///
    /// # Errors
    /// [`SandboxError::WrongState`] unless the container runs;
    /// [`SandboxError::Guest`] if the command cannot be run.
    pub async fn exec(
        &self,
        container_id: &str,
        spec: ExecSpec,
    ) -> Result<ExecSession, SandboxError> {
        let (entry, item) = self.item(container_id).await?;
        exec::exec(&self.inner, &entry, &item, &spec).await
    }

    /// Attaches to a running container: its output from now on, its stdin, its
    /// terminal. Any number may, each for itself. The session ends with the container,
    /// by [`ExecOutput::Exited`]; dropping its receiver leaves the container alone, but
    /// for the stdin of one that has it only once. [`ExecInput::StdinClosed`] and the
    /// end of the sender close such a stdin, too; any other stays open.
    ///
    /// # Errors
    /// [`SandboxError::WrongState`] unless the container runs;
    /// [`SandboxError::Invalid`] if it was made without what is asked for;
    /// [`SandboxError::Guest`] if its stdin has been closed.
    pub async fn attach(
        &self,
        container_id: &str,
        spec: AttachSpec,
    ) -> Result<ExecSession, SandboxError> {
        let (entry, item) = self.item(container_id).await?;
        attach::attach(&self.inner, &entry, &item, spec).await
    }

    /// Runs a command in a running container to its end, for at most `timeout`;
    /// of each of its two outputs keeps the first `limit` bytes. That the command
    /// fails is a result. Dropping the future kills the command.
    ///
    /// # Errors
    /// [`SandboxError::ExecTimeout`] if it was killed; otherwise as
    /// [`Self::exec`].
    pub async fn exec_sync(
        &self,
        container_id: &str,
        args: Vec<String>,
        timeout: Option<Duration>,
        limit: usize,
    ) -> Result<ExecResult, SandboxError> {
        let (entry, item) = self.item(container_id).await?;
        exec::exec_sync(&self.inner, &entry, &item, args, timeout, limit).await
    }

    /// Connects to a TCP port of a sandbox that has a VM: to its loopback addresses,
    /// or else to any other address of its own that listens there. The stream is the
    /// connection, with the end of each way on its own (`shutdown`); dropping it
    /// closes both.
    ///
    /// # Errors
    /// [`SandboxError::Guest`] if nothing listens there; [`SandboxError::WrongState`]
    /// or [`SandboxError::VmDied`] if there is no VM.
    pub async fn port_forward(
        &self,
        sandbox_id: &str,
        port: u16,
    ) -> Result<UnixStream, SandboxError> {
        let entry = self.entry(sandbox_id).await?;
        port_forward::open(&self.inner, &entry, port).await
    }

    /// Opens a running container's log path anew and goes on there: for log
    /// rotation, after the old file was renamed. No byte is lost or doubled.
    ///
    /// # Errors
    /// [`SandboxError::WrongState`] unless the container runs.
    pub async fn reopen_log(&self, container_id: &str) -> Result<(), SandboxError> {
        let (entry, item) = self.item(container_id).await?;
        detached(container_id, async move {
            container::reopen(&entry, &item).await
        })
        .await
    }

    /// Replaces the limits of a container while it runs, or before.
    ///
    /// # Errors
    /// [`SandboxError::WrongState`] unless it is Created or Running.
    pub async fn update_container(
        &self,
        id: &str,
        limits: ResourceSpec,
    ) -> Result<(), SandboxError> {
        let (entry, item) = self.item(id).await?;
        let inner = Arc::clone(&self.inner);
        detached(id, async move {
            update::container(&inner, &entry, &item, limits).await
        })
        .await
    }

    /// Replaces the limits of all containers of a sandbox together.
    ///
    /// # Errors
    /// [`SandboxError::WrongState`] unless it is Ready.
    pub async fn update_sandbox(&self, id: &str, limits: ResourceSpec) -> Result<(), SandboxError> {
        let entry = self.entry(id).await?;
        let inner = Arc::clone(&self.inner);
        detached(
            id,
            async move { update::sandbox(&inner, &entry, limits).await },
        )
        .await
    }

    /// Attaches a block volume to a sandbox that runs: this, with
    /// [`Self::detach_volume`] and [`Self::resize_volume`], is what a CSI driver's node
    /// service needs of a runtime. Of one that is attached in the same way already:
    /// success. If it fails nothing of it stays.
    ///
    /// # Errors
    /// [`SandboxError::Invalid`] if it can be none; [`SandboxError::Volume`] if the
    /// host's file or device is in use, or holds something else than it should.
    pub async fn attach_volume(
        &self,
        sandbox_id: &str,
        volume: BlockVolumeSpec,
        source: VolumeSource,
    ) -> Result<(), SandboxError> {
        let entry = self.entry(sandbox_id).await?;
        let inner = Arc::clone(&self.inner);
        detached(sandbox_id, async move {
            let live = volumes::ready(&entry)?;
            volumes::attach(&inner, &entry, &live, volume, source).await
        })
        .await
    }

    /// Detaches a block volume that no container has; what was written to it is with
    /// the host then. Of an unknown one: success.
    ///
    /// # Errors
    /// [`SandboxError::Volume`] if a container has it.
    pub async fn detach_volume(&self, sandbox_id: &str, name: &str) -> Result<(), SandboxError> {
        let entry = self.entry(sandbox_id).await?;
        let (inner, name) = (Arc::clone(&self.inner), name.to_owned());
        detached(sandbox_id, async move {
            let live = volumes::ready(&entry)?;
            volumes::detach(&inner, &entry, &live, &name).await
        })
        .await
    }

    /// Lets the guest have what a block volume's file or device has grown by, its file
    /// system included. Returns the volume's bytes.
    ///
    /// # Errors
    /// [`SandboxError::Volume`] if there is none of that name; [`SandboxError::Vmm`] if
    /// it has shrunk.
    pub async fn resize_volume(&self, sandbox_id: &str, name: &str) -> Result<u64, SandboxError> {
        let entry = self.entry(sandbox_id).await?;
        let (inner, name) = (Arc::clone(&self.inner), name.to_owned());
        detached(sandbox_id, async move {
            let live = volumes::ready(&entry)?;
            volumes::resize(&inner, &entry, &live, &name).await
        })
        .await
    }

    /// Changes how much I/O a block volume may do.
    ///
    /// # Errors
    /// [`SandboxError::Volume`] if there is none of that name.
    pub async fn limit_volume(
        &self,
        sandbox_id: &str,
        name: &str,
        limits: IoLimits,
    ) -> Result<(), SandboxError> {
        let entry = self.entry(sandbox_id).await?;
        let name = name.to_owned();
        detached(sandbox_id, async move {
            let live = volumes::ready(&entry)?;
            volumes::limit(&entry, &live, &name, limits).await
        })
        .await
    }

    /// Adds annotations to a container's, replacing those of the same names.
    ///
    /// # Errors
    /// If there is none of that id, or the record cannot be written.
    pub async fn annotate_container(
        &self,
        id: &str,
        annotations: BTreeMap<String, String>,
    ) -> Result<(), SandboxError> {
        let (_, item) = self.inner.registry.container(id)?;
        item.record
            .update(|c| c.spec.annotations.extend(annotations))
            .await
    }

    /// Figures of a sandbox that has a VM, and of its containers.
    ///
    /// # Errors
    /// [`SandboxError::WrongState`] or [`SandboxError::VmDied`] if it has none;
    /// [`SandboxError::AgentTimeout`] if the guest is silent.
    pub async fn stats(&self, sandbox_id: &str) -> Result<SandboxStats, SandboxError> {
        let entry = self.entry(sandbox_id).await?;
        stats::sandbox(&self.inner, &entry).await
    }

    /// Figures of a container whose sandbox has a VM.
    ///
    /// # Errors
    /// As [`Self::stats`].
    pub async fn container_stats(&self, id: &str) -> Result<ContainerStats, SandboxError> {
        let (entry, item) = self.item(id).await?;
        stats::container(&self.inner, &entry, &item).await
    }

    /// Whether sandboxes could be given a network now.
    ///
    /// # Errors
    /// The first thing that is missing, and what to do about it.
    pub async fn network_status(&self) -> Result<Arc<NetworkList>, SandboxError> {
        network::status(&self.inner).await
    }

    /// A sandbox as it is.
    ///
    /// # Errors
    /// If there is none of that id.
    pub fn sandbox(&self, id: &str) -> Result<Sandbox, SandboxError> {
        Ok(self.inner.registry.get(id)?.record.get())
    }

    /// All sandboxes.
    pub fn sandboxes(&self) -> Vec<Sandbox> {
        let entries = self.inner.registry.list();
        entries.iter().map(|entry| entry.record.get()).collect()
    }

    /// A container as it is.
    ///
    /// # Errors
    /// If there is none of that id.
    pub fn container(&self, id: &str) -> Result<Container, SandboxError> {
        Ok(self.inner.registry.container(id)?.1.record.get())
    }

    /// The containers of a sandbox; none of an unknown one.
    pub fn containers(&self, sandbox_id: &str) -> Vec<Container> {
        let Ok(entry) = self.inner.registry.get(sandbox_id) else {
            return Vec::new();
        };
        let containers = entry.containers();
        containers.iter().map(|item| item.record.get()).collect()
    }

    /// The containers of all sandboxes.
    pub fn all_containers(&self) -> Vec<Container> {
        let entries = self.inner.registry.list();
        let containers = entries.iter().flat_map(|entry| entry.containers());
        containers.map(|item| item.record.get()).collect()
    }

    /// All changes from now on. A subscriber that falls far behind is told so
    /// (`Lagged`) and should look at the states again.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.inner.events.subscribe()
    }
}
