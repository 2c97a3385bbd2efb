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

use super::relay::Relay;
use super::ring::Ring;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::JoinHandle;
use vhost::vhost_user::Listener;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{
    ShutdownHandle, VhostUserBackend, VhostUserDaemon, VringEpollHandler, VringState, VringT,
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
pub(super) type Memory = GuestMemoryAtomic<GuestMemoryMmap>;
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
    shutdown: Option<ShutdownHandle>,
    watcher: Option<JoinHandle<()>>,
    /// Of a device that QEMU connects to by itself. It ends after the rest.
    _relay: Option<Relay>,
}

impl Server {
    /// Starts serving `device`; QEMU gets the other end of the connection, or
    /// with `relayed` the place of a socket to connect to.
    /// `frontend_queues` is the number of queues that QEMU serves by vhost.
    /// `dir` holds a socket for a moment.
    pub(super) fn start(
        device: Box<dyn VirtioDevice>,
        frontend_queues: usize,
        relayed: bool,
        dir: &Path,
    ) -> Result<(Self, OwnedFd), VhostUserError> {
        let name = device.name();
        let fail = |detail: String| VhostUserError::Start {
            device: name,
            detail,
        };
        let unconnected = |source| VhostUserError::Connect {
            device: name,
            source,
        };
        let path = dir.join(format!("vhost-{name}.sock"));
        let (listener, frontend) = connected_listener(&path).map_err(unconnected)?;
        let backend = Arc::new(Served::new(device, frontend_queues));
        let memory = Memory::new(GuestMemoryMmap::new());
        let mut daemon = VhostUserDaemon::new(format!("vu-{name}"), backend.clone(), memory)
            .map_err(|e| fail(e.to_string()))?;
        if let Some(worker) = daemon.get_epoll_handlers().first() {
            // Set once, here; the worker meets no event before QEMU's first message.
            let _ = backend.worker.set(Arc::downgrade(worker));
        }
        daemon
            .start(&mut Listener::from(listener))
            .map_err(|e| fail(e.to_string()))?;
        let shutdown = daemon.shutdown_handle();
        let watcher = std::thread::Builder::new()
            .name(format!("vw-{name}"))
            .spawn(move || watch(daemon, name))
            .map_err(|e| fail(e.to_string()))?;
        let mut server = Self {
            backend,
            shutdown,
            watcher: Some(watcher),
            _relay: None,
        };
        if !relayed {
            return Ok((server, frontend.into()));
        }
        let relay = Relay::start(name, &path, frontend).map_err(unconnected)?;
        let place = relay.place().map_err(unconnected)?;
        server._relay = Some(relay);
        Ok((server, place))
    }

    /// Tells the back end that its rings stop for a pause: when they start again
    /// it goes on, instead of being reset for a new driver.
    pub(super) fn expect_pause(&self) {
        self.backend.paused.store(true, Ordering::Release);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(shutdown) = &self.shutdown {
            shutdown.shutdown();
        }
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}

/// Waits for the end of a device's connection; says so if QEMU did not end it.
fn watch(mut daemon: VhostUserDaemon<Arc<Served>>, device: &'static str) {
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
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    let stream = UnixStream::connect(path);
    std::fs::remove_file(path)?;
    Ok((listener, stream?))
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
    fn run(&self, state: &mut State, event: u64, rings: &[Ring]) -> Result<(), DeviceError> {
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
    type Vring = Ring;

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
        rings: &[Ring],
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
    fn device_that_no_qemu_connects_to_ends_when_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let device = Box::new(virtio_devices::Rng::new().unwrap());
        let (server, _place) = Server::start(device, 1, true, dir.path()).unwrap();
        drop(server);
    }
}
