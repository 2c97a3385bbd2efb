//! Serves a device back end over vhost-user, which is how QEMU's devices reach
//! it.
//!
//! A device has three threads: the one of `VhostUserDaemon` answers QEMU's
//! messages (memory, rings, features), the worker runs the back end, and one
//! waits for the end of the first, which nobody else would notice. QEMU stops
//! a device's rings one by one, as when the VM is paused; a back end must not
//! meet half of its queues, so it is run only while all that QEMU serves are
//! ready ([`Served::run`]), and its host descriptor is watched only then.
//!
//! Lock order: the back end ([`Served::state`]), then the rings.

use rustix::fs::{Mode, OFlags};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::JoinHandle;
use vhost::vhost_user::Listener;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{
    ShutdownHandle, VhostUserBackend, VhostUserDaemon, VringEpollHandler, VringMutex, VringState,
    VringT,
};
use virtio_devices::{DeviceError, VirtQueue, VirtioDevice};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

/// Largest ring that a guest may make, whatever the back end asks for: QEMU's
/// virtio-mmio tells every driver that rings may have 1024 entries.
const FRONTEND_QUEUE_SIZE: usize = 1024;

/// Guest memory as QEMU shares it, replaced when its memory map changes.
type Memory = GuestMemoryAtomic<GuestMemoryMmap>;
/// The worker of a device.
type Worker = VringEpollHandler<Arc<Served>>;

/// Why a device could not be served.
#[derive(Debug, thiserror::Error)]
pub(super) enum VhostUserError {
    /// The connection to QEMU could not be made.
    #[error("the vhost-user connection of device {device} could not be made")]
    Connect {
        /// Name of the device.
        device: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The threads of the device could not be started.
    #[error("the vhost-user back end of device {device} did not start: {detail}")]
    Start {
        /// Name of the device.
        device: &'static str,
        /// In the words of the vhost-user library.
        detail: String,
    },
}

/// A device that is being served. Dropping it ends its threads and the back end.
pub(super) struct Server {
    backend: Arc<Served>,
    ending: Arc<Mutex<Ending>>,
    /// Of a connection that QEMU makes: the place of the socket.
    place: Option<OwnedFd>,
    watcher: Option<JoinHandle<()>>,
}

/// How the threads of a device are told to end.
#[derive(Default)]
struct Ending {
    /// Once there is a connection.
    shutdown: Option<ShutdownHandle>,
    /// They are to end, with or without one.
    wanted: bool,
}

type Daemon = VhostUserDaemon<Arc<Served>>;

impl Server {
    /// Starts serving `device`; QEMU gets the other end of the connection.
    /// `frontend_queues` is the number of queues that QEMU serves by vhost.
    /// `dir` holds a socket for a moment.
    pub(super) fn start(
        device: Box<dyn VirtioDevice>,
        frontend_queues: usize,
        dir: &Path,
    ) -> Result<(Self, OwnedFd), VhostUserError> {
        let name = device.name();
        let (listener, frontend) =
            connected_listener(&socket_path(dir, name)).map_err(connect_error(name))?;
        let (backend, mut daemon) = prepare(device, frontend_queues)?;
        daemon
            .start(&mut Listener::from(listener))
            .map_err(start_error(name))?;
        let ending = Arc::new(Mutex::new(Ending {
            shutdown: daemon.shutdown_handle(),
            wanted: false,
        }));
        let watcher = std::thread::Builder::new()
            .name(format!("vw-{name}"))
            .spawn(move || watch(daemon, name))
            .map_err(start_error(name))?;
        let server = Self {
            backend,
            ending,
            place: None,
            watcher: Some(watcher),
        };
        Ok((server, frontend.into()))
    }

    /// The same, where QEMU makes the connection itself: it gets the place of a
    /// socket (O_PATH) that has no name any more.
    pub(super) fn await_connection(
        device: Box<dyn VirtioDevice>,
        frontend_queues: usize,
        dir: &Path,
    ) -> Result<(Self, OwnedFd), VhostUserError> {
        let name = device.name();
        let (listener, place) =
            nameless_listener(&socket_path(dir, name)).map_err(connect_error(name))?;
        let theirs = place.try_clone().map_err(connect_error(name))?;
        let (backend, mut daemon) = prepare(device, frontend_queues)?;
        let ending = Arc::<Mutex<Ending>>::default();
        let told = ending.clone();
        let serve = move || {
            // Ends by QEMU's connection, or by that of `drop`.
            let started = daemon.start(&mut Listener::from(listener));
            {
                let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                told.shutdown = daemon.shutdown_handle();
                if told.wanted
                    && let Some(shutdown) = &told.shutdown
                {
                    shutdown.shutdown();
                }
            }
            match started {
                Ok(()) => watch(daemon, name),
                Err(error) => {
                    tracing::error!(device = name, %error, "the device met no QEMU");
                }
            }
        };
        let watcher = std::thread::Builder::new()
            .name(format!("vw-{name}"))
            .spawn(serve)
            .map_err(start_error(name))?;
        let server = Self {
            backend,
            ending,
            place: Some(place),
            watcher: Some(watcher),
        };
        Ok((server, theirs))
    }

    /// Tells the back end that its rings stop for a pause: when they start again
    /// it goes on, instead of being reset for a new driver.
    pub(super) fn expect_pause(&self) {
        self.backend.paused.store(true, Ordering::Release);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        {
            let mut ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
            ending.wanted = true;
            if let Some(shutdown) = &ending.shutdown {
                shutdown.shutdown();
            }
        }
        if let Some(place) = &self.place {
            // Refused where QEMU has connected: then nobody waits for it.
            let _ = UnixStream::connect(format!("/proc/self/fd/{}", place.as_raw_fd()));
        }
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}

fn socket_path(dir: &Path, device: &str) -> PathBuf {
    dir.join(format!("vhost-{device}.sock"))
}

fn connect_error(device: &'static str) -> impl Fn(io::Error) -> VhostUserError {
    move |source| VhostUserError::Connect { device, source }
}

fn start_error<E: std::fmt::Display>(device: &'static str) -> impl Fn(E) -> VhostUserError {
    move |error| VhostUserError::Start {
        device,
        detail: error.to_string(),
    }
}

/// The back end and the daemon that will carry it.
fn prepare(
    device: Box<dyn VirtioDevice>,
    frontend_queues: usize,
) -> Result<(Arc<Served>, Daemon), VhostUserError> {
    let name = device.name();
    let backend = Arc::new(Served::new(device, frontend_queues));
    let memory = Memory::new(GuestMemoryMmap::new());
    let daemon = VhostUserDaemon::new(format!("vu-{name}"), backend.clone(), memory)
        .map_err(start_error(name))?;
    if let Some(worker) = daemon.get_epoll_handlers().first() {
        // Set once, here; the worker meets no event before QEMU's first message.
        let _ = backend.worker.set(Arc::downgrade(worker));
    }
    Ok((backend, daemon))
}

/// Waits for the end of a device's connection; says so if QEMU did not end it.
fn watch(mut daemon: Daemon, device: &'static str) {
    use vhost::vhost_user::Error;
    use vhost_user_backend::Error::HandleRequest;
    match daemon.wait() {
        Ok(()) | Err(HandleRequest(Error::Disconnected | Error::PartialMessage)) => {}
        Err(error) => {
            tracing::error!(device, %error, "the vhost-user connection broke; the device stopped");
        }
    }
}

/// A listener in whose queue one connection waits, and that connection: the
/// library wants to accept, QEMU shall find nothing by name, nobody shall wait.
fn connected_listener(path: &Path) -> io::Result<(UnixListener, UnixStream)> {
    remove_stale(path)?;
    let listener = UnixListener::bind(path)?;
    let stream = UnixStream::connect(path);
    std::fs::remove_file(path)?;
    Ok((listener, stream?))
}

/// A listener without a name, and its place, by which one can still connect.
fn nameless_listener(path: &Path) -> io::Result<(UnixListener, OwnedFd)> {
    remove_stale(path)?;
    let listener = UnixListener::bind(path)?;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let place = rustix::fs::open(path, flags, Mode::empty());
    std::fs::remove_file(path)?;
    Ok((listener, place?))
}

fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// A back end as the vhost-user library calls it.
pub(super) struct Served {
    state: Mutex<State>,
    name: &'static str,
    features: u64,
    queues: usize,
    worker: OnceLock<Weak<Worker>>,
    paused: AtomicBool,
}

struct State {
    device: Box<dyn VirtioDevice>,
    frontend_queues: usize,
    memory: Option<Memory>,
    activated: bool,
    /// All of the front end's queues are ready; the host descriptor is watched.
    live: bool,
    /// A [`DeviceError`] ended it.
    broken: bool,
}

impl Served {
    fn new(device: Box<dyn VirtioDevice>, frontend_queues: usize) -> Self {
        let sizes = device.queue_sizes();
        Self {
            name: device.name(),
            features: device.features() | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits(),
            queues: sizes.len(),
            worker: OnceLock::new(),
            paused: AtomicBool::new(false),
            state: Mutex::new(State {
                frontend_queues: frontend_queues.min(sizes.len()),
                device,
                memory: None,
                activated: false,
                live: false,
                broken: false,
            }),
        }
    }

    /// A back end that panicked is not used any more, its lock still is.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Event number of the host descriptor: the library keeps those up to the
    /// number of queues to itself.
    fn host_event(&self) -> u64 {
        self.queues as u64 + 1
    }

    /// Has the worker watch the host descriptor, or leave it alone.
    fn watch_host_fd(&self, state: &State, watch: bool) -> io::Result<()> {
        let Some(fd) = state.device.host_fd() else {
            return Ok(());
        };
        let Some(worker) = self.worker.get().and_then(Weak::upgrade) else {
            return Ok(());
        };
        if watch {
            worker.register_listener(fd.as_raw_fd(), EventSet::IN, self.host_event())
        } else {
            worker.unregister_listener(fd.as_raw_fd(), EventSet::IN, self.host_event())
        }
    }

    /// Runs the back end for an event: a queue's index, or the host descriptor.
    fn run(&self, state: &mut State, event: u64, rings: &[VringMutex]) -> Result<(), DeviceError> {
        let Some(memory) = state.memory.as_ref().map(GuestAddressSpace::memory) else {
            return Ok(());
        };
        let mut lent: Vec<Lent<'_>> = rings
            .iter()
            .map(|ring| Lent {
                ring: ring.get_mut(),
                memory: &memory,
            })
            .collect();
        let ready = lent
            .iter()
            .take(state.frontend_queues)
            .all(|lent| lent.ring.is_enabled() && lent.ring.get_queue().ready());
        if !ready || !state.activated {
            return Ok(());
        }
        let mut queues: Vec<&mut dyn VirtQueue> = lent
            .iter_mut()
            .map(|lent| lent as &mut dyn VirtQueue)
            .collect();
        if !state.live {
            state.live = true;
            self.watch_host_fd(state, true)?;
            // Bells that rang while the queues became ready were not heard.
            for index in 0..state.frontend_queues {
                let index = u16::try_from(index).unwrap_or(u16::MAX);
                state.device.queue_event(index, &memory, &mut queues)?;
            }
            return Ok(());
        }
        if event == self.host_event() {
            return state.device.host_event(&memory, &mut queues);
        }
        match u16::try_from(event) {
            Ok(index) if usize::from(index) < self.queues => {
                state.device.queue_event(index, &memory, &mut queues)
            }
            _ => Ok(()),
        }
    }
}

/// One ring, lent to a back end for one call.
struct Lent<'a> {
    ring: MutexGuard<'a, VringState>,
    memory: &'a GuestMemoryMmap,
}

impl VirtQueue for Lent<'_> {
    fn queue(&mut self) -> &mut Queue {
        self.ring.get_queue_mut()
    }

    fn signal(&mut self) -> io::Result<()> {
        let needed = self
            .ring
            .get_queue_mut()
            .needs_notification(self.memory)
            // The ring cannot be read: the next call of the back end says so. An
            // interrupt too many does no harm.
            .unwrap_or(true);
        if needed {
            self.interrupt()?;
        }
        Ok(())
    }

    fn interrupt(&mut self) -> io::Result<()> {
        self.ring.signal_used_queue()
    }
}

impl VhostUserBackend for Served {
    type Bitmap = ();
    type Vring = VringMutex;

    fn num_queues(&self) -> usize {
        self.queues
    }

    fn max_queue_size(&self) -> usize {
        FRONTEND_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn acked_features(&self, features: u64) {
        let mut state = self.lock();
        let resumed = self.paused.swap(false, Ordering::AcqRel);
        if state.activated && resumed {
            return;
        }
        if state.activated {
            // A driver that bound itself anew.
            state.device.reset();
        }
        let features = features & !VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        state.device.activate(features);
        state.activated = true;
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        // The library has checked both against the largest configuration space.
        let mut data = vec![0; usize::try_from(size).unwrap_or(0)];
        self.lock().device.read_config(offset.into(), &mut data);
        data
    }

    fn set_config(&self, offset: u32, data: &[u8]) -> io::Result<()> {
        self.lock().device.write_config(offset.into(), data);
        Ok(())
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        self.lock().memory = Some(memory);
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::CLOEXEC | EventFlag::NONBLOCK).ok()
    }

    fn stop_vring(&self, _index: u32) -> io::Result<()> {
        // Having the lock means that the worker is not inside the back end.
        let mut state = self.lock();
        if state.live {
            state.live = false;
            if !state.broken {
                self.watch_host_fd(&state, false)?;
            }
        }
        Ok(())
    }

    fn handle_event(
        &self,
        event: u16,
        _events: EventSet,
        rings: &[VringMutex],
        _thread: usize,
    ) -> io::Result<()> {
        let mut state = self.lock();
        if state.broken {
            return Ok(());
        }
        let Err(error) = self.run(&mut state, event.into(), rings) else {
            return Ok(());
        };
        state.broken = true;
        tracing::error!(
            device = self.name,
            error = &error as &dyn std::error::Error,
            "the device stopped; the VM goes on without it"
        );
        if state.live {
            // Nobody will read from it, and it would keep the worker busy.
            self.watch_host_fd(&state, false)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_leaves_no_socket_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        // A stale socket of a process that was killed is in nobody's way.
        drop(UnixListener::bind(&path).unwrap());
        let (listener, _stream) = connected_listener(&path).unwrap();
        listener.accept().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn nameless_socket_is_reached_by_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (listener, place) = nameless_listener(&path).unwrap();
        assert!(!path.exists());
        let place = format!("/proc/self/fd/{}", place.as_raw_fd());
        let _stream = UnixStream::connect(place).unwrap();
        listener.accept().unwrap();
    }

    #[test]
    fn device_that_no_qemu_connects_to_ends_when_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let device = Box::new(virtio_devices::Rng::new().unwrap());
        let (server, _place) = Server::await_connection(device, 1, dir.path()).unwrap();
        drop(server);
    }
}
