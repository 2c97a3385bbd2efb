//! The thread that serves one device.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::transport::{Event, Transport};

/// Tokens beside those of the bells, which have their queue's index.
const CONTROL: u64 = 1 << 32;
const HOST: u64 = 2 << 32;

/// Starts the device's thread; it ends after [`Transport::stop`].
pub(crate) fn start(transport: Arc<Transport>) -> io::Result<JoinHandle<()>> {
    let mut poller = Poller::new(&transport)?;
    std::thread::Builder::new()
        .name(format!("dev-{}", transport.name()))
        .spawn(move || {
            if let Err(error) = run(&transport, &mut poller) {
                tracing::error!(device = transport.name(), %error, "the device stands still");
            }
        })
}

fn run(transport: &Transport, poller: &mut Poller) -> io::Result<()> {
    loop {
        let (stop, active) = {
            let inner = transport.lock();
            (inner.stop, inner.active)
        };
        if stop {
            return Ok(());
        }
        poller.watch_host(transport, active)?;
        let events = poller.wait(transport)?;
        if !events.is_empty() {
            transport.serve(&events);
        }
    }
}

/// What the thread sleeps on.
struct Poller {
    epoll: Epoll,
    ready: Vec<EpollEvent>,
    /// The back end's descriptor is watched only while the device is active:
    /// it is level-triggered, and no one would make it calm.
    host_watched: bool,
}

impl Poller {
    fn new(transport: &Transport) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let add = |fd: &dyn AsRawFd, token| {
            let event = EpollEvent::new(EventSet::IN, token);
            epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), event)
        };
        add(&transport.control, CONTROL)?;
        for (index, bell) in (0..).zip(transport.bells()) {
            add(bell, index)?;
        }
        let ready = vec![EpollEvent::default(); transport.bells().len() + 2];
        Ok(Self {
            epoll,
            ready,
            host_watched: false,
        })
    }

    fn watch_host(&mut self, transport: &Transport, wanted: bool) -> io::Result<()> {
        let Some(host) = &transport.host_fd else {
            return Ok(());
        };
        if wanted == self.host_watched {
            return Ok(());
        }
        let operation = if wanted {
            ControlOperation::Add
        } else {
            ControlOperation::Delete
        };
        let event = EpollEvent::new(EventSet::IN, HOST);
        self.epoll.ctl(operation, host.as_raw_fd(), event)?;
        self.host_watched = wanted;
        Ok(())
    }

    /// Sleeps until there is something to do. Bells are silenced, also those
    /// that ring while the device is not active.
    fn wait(&mut self, transport: &Transport) -> io::Result<Vec<Event>> {
        let count = match self.epoll.wait(-1, &mut self.ready) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        let mut events = Vec::with_capacity(count);
        for event in &self.ready[..count] {
            // The eventfds do not block; each is read by this thread alone.
            match event.data() {
                CONTROL => {
                    let _ = transport.control.read();
                }
                HOST => events.push(Event::Host),
                token => {
                    let index = u16::try_from(token).unwrap_or(u16::MAX);
                    if let Some(bell) = transport.bells().get(usize::from(index)) {
                        let _ = bell.read();
                        events.push(Event::Bell(index));
                    }
                }
            }
        }
        Ok(events)
    }
}
