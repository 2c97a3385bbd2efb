//! Signals that ask the process to end: its VM ends with it, in order, and the
//! exit record says by which signal. SIGKILL cannot be caught, and leaves none.

use crate::lifecycle::ExitSlot;
use nix::sys::signal::{SigSet, Signal};
use std::io;
use std::sync::Arc;
use vm_spec::proto::{VmExit, vm_exit::Reason};

/// What an administrator or a service manager sends.
const SIGNALS: [Signal; 2] = [Signal::SIGTERM, Signal::SIGINT];

/// Takes these signals from now on, on a thread of their own. Called before any
/// other thread is started: those, and QEMU, inherit that they are blocked.
pub(crate) fn watch(exit: Arc<ExitSlot>) -> io::Result<()> {
    let signals: SigSet = SIGNALS.into_iter().collect();
    signals.thread_block()?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            loop {
                match signals.wait() {
                    Ok(signal) => exit.set(ended_by(signal)),
                    Err(nix::errno::Errno::EINTR) => {}
                    Err(error) => {
                        tracing::error!(%error, "signals are not heard any more");
                        return;
                    }
                }
            }
        })?;
    Ok(())
}

fn ended_by(signal: Signal) -> VmExit {
    VmExit {
        reason: Reason::Killed.into(),
        message: format!("it got the signal {signal}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_names_the_signal() {
        let exit = ended_by(Signal::SIGTERM);
        assert_eq!(exit.reason(), Reason::Killed);
        assert_eq!(exit.message, "it got the signal SIGTERM");
    }
}
