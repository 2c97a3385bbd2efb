//! RemoveContainer: taking away, step by step and without blocking the event
//! loop, what a container left. Each step is tried again until the kernel lets
//! go of what the container used.

use super::layer::LayerRemoval;
use super::{Caller, Container};
use crate::cgroup::Cgroup;
use crate::disks::{Disks, Extent};
use crate::error::{AgentError, Doing};
use crate::sys::process;
use rustix::io::Errno;
use rustix::process::Pid;
use std::time::{Duration, Instant};

/// How long the kernel may take to let go of a cgroup or an image.
const PATIENCE: Duration = Duration::from_secs(30);
/// Directory entries removed before other work gets its turn.
const STEPS: u32 = 256;

/// What is to be freed, in this order.
#[derive(Debug, Default)]
pub(crate) struct Leftovers {
    pub(crate) cgroup: Option<Cgroup>,
    pub(crate) layer: Option<String>,
    /// One for each use.
    pub(crate) images: Vec<Extent>,
}

impl Leftovers {
    /// Nothing is to be freed.
    pub(crate) fn is_empty(&self) -> bool {
        self.cgroup.is_none() && self.layer.is_none() && self.images.is_empty()
    }
}

/// Whether there is more to do.
#[derive(Debug)]
pub(crate) enum Progress {
    /// More work, at once.
    Busy,
    /// Nothing to do but to try again later.
    Waiting,
    /// Over; what could not be freed is in the error.
    Done(Result<(), AgentError>),
}

/// A removal under way.
#[derive(Debug)]
pub(crate) struct Removal {
    pub(crate) id: String,
    /// First process, until it is reaped.
    pub(crate) pid: Option<Pid>,
    /// Who asked for it.
    pub(crate) callers: Vec<Caller>,
    /// A create call that failed: answered with its error when all is freed.
    pub(crate) failed_create: Option<(Caller, AgentError)>,
    cgroup: Option<Cgroup>,
    layer: Option<LayerRemoval>,
    images: Vec<Extent>,
    released: bool,
    deadline: Instant,
}

impl Removal {
    /// Of a whole container, whose processes are killed now.
    pub(crate) fn of(id: String, container: Container) -> Self {
        if let Some(pid) = container.pid {
            let _ = process::send_signal(pid, libc::SIGKILL);
        }
        let pid = container.pid;
        let leftovers = Leftovers {
            cgroup: Some(container.cgroup),
            layer: Some(container.layer),
            images: container.images,
        };
        Self {
            pid,
            ..Self::of_leftovers(id, leftovers)
        }
    }

    /// Of what a failed creation left.
    pub(crate) fn of_leftovers(id: String, leftovers: Leftovers) -> Self {
        if let Some(cgroup) = &leftovers.cgroup {
            let _ = cgroup.kill();
        }
        Self {
            id,
            pid: None,
            callers: Vec::new(),
            failed_create: None,
            cgroup: leftovers.cgroup,
            layer: leftovers.layer.map(LayerRemoval::new),
            images: leftovers.images,
            released: false,
            deadline: Instant::now() + PATIENCE,
        }
    }

    /// Goes on with it.
    pub(crate) fn advance(&mut self, disks: &mut Disks) -> Progress {
        if self.pid.is_some() {
            return self.wait_or_give_up(Errno::BUSY, "ending the container's first process");
        }
        if let Some(cgroup) = &self.cgroup {
            if let Err(e) = cgroup.remove() {
                let _ = cgroup.kill();
                return self.wait_or_give_up(e, "removing the container's cgroup");
            }
            self.cgroup = None;
            self.deadline = Instant::now() + PATIENCE;
        }
        if let Some(layer) = &mut self.layer {
            match layer.advance(STEPS) {
                Ok(true) => {
                    self.layer = None;
                    self.deadline = Instant::now() + PATIENCE;
                }
                Ok(false) => return Progress::Busy,
                Err(e) => return self.wait_or_give_up(e, "removing the writable layer"),
            }
        }
        if !self.released {
            for image in &self.images {
                disks.release_image(image);
            }
            self.released = true;
        }
        while let Some(image) = self.images.last() {
            if let Err(e) = disks.drop_unused_image(image) {
                return self.wait_or_give_up(e, "unmounting an image");
            }
            self.images.pop();
        }
        Progress::Done(Ok(()))
    }

    fn wait_or_give_up(&mut self, error: Errno, doing: &str) -> Progress {
        let transient = matches!(error, Errno::BUSY | Errno::AGAIN | Errno::INTR);
        if transient && Instant::now() < self.deadline {
            return Progress::Waiting;
        }
        Progress::Done(Err(error).doing(|| format!("{doing} {}", self.id)))
    }
}
