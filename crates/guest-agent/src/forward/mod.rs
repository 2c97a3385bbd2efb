//! Port-forward connections: from the host's vsock connection to a TCP port of
//! the pod, whose network namespace is the agent's own.
//!
//! ```text
//! New --request--> Dialing --connected--> Copying --both ways ended--> (over)
//! ```
//!
//! Both descriptors are watched edge-triggered while bytes are copied, so each
//! turn goes on until neither way can.

mod copy;
mod dial;

use crate::connection::{ConnectionError, Framed};
use crate::error::AgentError;
use copy::Copying;
use dial::{Dial, Dialed};
use guest_api::proto::{PortForward, PortForwardOpened};
use rustix::event::epoll::EventFlags;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

/// One of a connection's descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Host,
    Target,
}

/// What is to be done about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Wait for its descriptors.
    Wait,
    /// There is more to do, but others should have their turn.
    Again,
    /// It has another target descriptor, to be watched from now on.
    NewTarget,
    /// It is over.
    Over,
}

#[derive(Debug)]
enum Phase {
    New(Framed),
    Dialing(Framed, Dial),
    Copying(Copying),
}

/// A connection from the host's to the pod's end.
#[derive(Debug)]
pub(crate) struct Forward {
    /// `None` within [`Self::advance`] only.
    phase: Option<Phase>,
}

impl Forward {
    /// Of a new connection of the host.
    pub(crate) fn new(framed: Framed) -> Self {
        Self {
            phase: Some(Phase::New(framed)),
        }
    }

    /// The host's end, for epoll: level-triggered until there is a target.
    pub(crate) fn host(&self) -> Option<BorrowedFd<'_>> {
        match self.phase.as_ref()? {
            Phase::New(framed) | Phase::Dialing(framed, _) => Some(framed.fd()),
            Phase::Copying(copying) => Some(copying.host()),
        }
    }

    /// The pod's end, for epoll: edge-triggered.
    pub(crate) fn target(&self) -> Option<BorrowedFd<'_>> {
        match self.phase.as_ref()? {
            Phase::New(_) => None,
            Phase::Dialing(_, dial) => Some(dial.socket().as_fd()),
            Phase::Copying(copying) => Some(copying.target()),
        }
    }

    /// What epoll says of the host's end that is no data.
    pub(crate) fn host_event(&mut self, flags: EventFlags) {
        let Some(Phase::Copying(copying)) = &mut self.phase else {
            return;
        };
        if flags.intersects(EventFlags::HUP | EventFlags::ERR) {
            copying.host_hung_up();
        } else if flags.contains(EventFlags::RDHUP) {
            copying.host_ended();
        }
    }

    /// When [`Self::on_deadline`] is to be called.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.phase.as_ref()? {
            Phase::Copying(copying) => copying.deadline(),
            _ => None,
        }
    }

    /// The deadline is over: so is this, by a reset.
    pub(crate) fn on_deadline(&self) {
        if let Some(Phase::Copying(copying)) = &self.phase {
            copying.abort();
        }
    }

    /// Goes on as far as it goes without blocking.
    pub(crate) fn advance(&mut self, scratch: &mut [u8]) -> Result<Progress, ConnectionError> {
        match self.phase.take() {
            Some(Phase::New(framed)) => self.take_request(framed, scratch),
            Some(Phase::Dialing(framed, dial)) => self.on_dialed(framed, dial.advance()),
            Some(Phase::Copying(mut copying)) => {
                let progress = copying.advance(scratch);
                self.phase = Some(Phase::Copying(copying));
                Ok(progress)
            }
            None => Ok(Progress::Over),
        }
    }

    fn take_request(
        &mut self,
        mut framed: Framed,
        scratch: &mut [u8],
    ) -> Result<Progress, ConnectionError> {
        framed.fill(scratch)?;
        let Some(request) = framed.next_message::<PortForward>()? else {
            self.phase = Some(Phase::New(framed));
            return Ok(Progress::Wait);
        };
        let port = u16::try_from(request.port).unwrap_or(0);
        if port == 0 {
            let error = AgentError::invalid("port", format!("{} is no TCP port", request.port));
            return refuse(framed, error);
        }
        self.on_dialed(framed, dial::start(port))
    }

    fn on_dialed(
        &mut self,
        mut framed: Framed,
        dialed: Dialed,
    ) -> Result<Progress, ConnectionError> {
        match dialed {
            Dialed::Waits(dial) => {
                self.phase = Some(Phase::Dialing(framed, dial));
                return Ok(Progress::Wait);
            }
            Dialed::Begun(dial) => self.phase = Some(Phase::Dialing(framed, dial)),
            Dialed::Failed(error) => return refuse(framed, error),
            Dialed::Connected(target) => {
                framed.send(&PortForwardOpened { error: None })?;
                let (host, came) = framed.into_raw().ok_or(ConnectionError::Backlog)?;
                self.phase = Some(Phase::Copying(Copying::new(host, target, came)));
            }
        }
        Ok(Progress::NewTarget)
    }
}

/// Says why, and that is all.
fn refuse(mut framed: Framed, error: AgentError) -> Result<Progress, ConnectionError> {
    let error = Some(error.into_wire());
    framed.send(&PortForwardOpened { error })?;
    Ok(Progress::Over)
}
