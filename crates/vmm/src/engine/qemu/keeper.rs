//! The keeper: the thread that starts QEMU, waits for its end and says how the
//! guest ended.
//!
//! It must be a thread that lives as long as QEMU: the kernel kills QEMU when
//! the thread that started it is gone.

use super::child::{self, Killer, Qemu};
use std::io;
use std::os::fd::OwnedFd;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use vm_spec::proto::{VmExit, vm_exit::Reason};

/// How long QEMU, having closed its control connection, may take to end.
const GRACE: Duration = Duration::from_secs(2);

type OnExit = Box<dyn FnOnce(VmExit) + Send>;

/// How QEMU ended.
#[derive(Clone, Debug)]
pub(super) struct End {
    /// "exited with code 1", "was killed by signal 9".
    pub(super) status: String,
    /// The end of its messages.
    pub(super) stderr: String,
    clean: bool,
}

/// What becomes of a QEMU, and who wants to know.
#[derive(Default)]
struct Fate {
    end: Option<End>,
    on_exit: Option<OnExit>,
}

/// A QEMU with its keeper. Dropping it kills QEMU and waits for its end.
pub(super) struct Keeper {
    thread: Option<JoinHandle<()>>,
    ended: Receiver<()>,
    killer: Killer,
    killed: Arc<AtomicBool>,
    fate: Arc<Mutex<Fate>>,
}

impl Keeper {
    /// Starts QEMU with `fds` to inherit. `console` ends after QEMU; what it
    /// still has to say is waited for.
    pub(super) fn start(
        command: Command,
        fds: Vec<OwnedFd>,
        console: JoinHandle<()>,
    ) -> io::Result<Self> {
        let (started_to, started) = sync_channel(1);
        let (ended_to, ended) = sync_channel(1);
        let killed = Arc::new(AtomicBool::new(false));
        let fate: Arc<Mutex<Fate>> = Arc::default();
        let (thread_killed, thread_fate) = (killed.clone(), fate.clone());
        let thread = std::thread::Builder::new()
            .name("qemu-keeper".into())
            .spawn(move || {
                let qemu = match Qemu::spawn(command, fds) {
                    Ok((qemu, killer)) => {
                        // The receiver waits for exactly this.
                        let _ = started_to.send(Ok(killer));
                        qemu
                    }
                    Err(e) => {
                        let _ = started_to.send(Err(e));
                        return;
                    }
                };
                let (status, stderr) = qemu.wait();
                let _ = console.join();
                report(&thread_fate, &status, stderr, &thread_killed);
                let _ = ended_to.send(());
            })?;
        let killer = started
            .recv()
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))??;
        Ok(Self {
            thread: Some(thread),
            ended,
            killer,
            killed,
            fate,
        })
    }

    /// From now on the end of QEMU is the end of a guest, and is told to
    /// `on_exit`: at once if it has happened.
    pub(super) fn confirm(&self, on_exit: OnExit) {
        let mut fate = lock(&self.fate);
        match fate.end.clone() {
            None => fate.on_exit = Some(on_exit),
            Some(end) => {
                drop(fate);
                on_exit(guest_exit(&end, self.killed.load(Ordering::Acquire)));
            }
        }
    }

    /// Waits a moment for a QEMU that is ending, kills it otherwise; returns how
    /// it ended by itself.
    pub(super) fn give_up(self) -> Option<End> {
        self.ended.recv_timeout(GRACE).ok()?;
        lock(&self.fate).end.clone()
    }

    /// Kills QEMU; when this returns, `on_exit` was called.
    pub(super) fn kill(&mut self) {
        self.killed.store(true, Ordering::Release);
        self.killer.kill();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    /// QEMU's process id.
    pub(super) fn pid(&self) -> u32 {
        self.killer.pid()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.kill();
    }
}

fn lock(fate: &Mutex<Fate>) -> std::sync::MutexGuard<'_, Fate> {
    fate.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Records the end of QEMU and tells who wants to know.
fn report(
    fate: &Mutex<Fate>,
    status: &io::Result<ExitStatus>,
    stderr: String,
    killed: &AtomicBool,
) {
    let end = End {
        status: child::describe(status),
        stderr,
        clean: status.as_ref().is_ok_and(ExitStatus::success),
    };
    let on_exit = {
        let mut fate = lock(fate);
        fate.end = Some(end.clone());
        fate.on_exit.take()
    };
    if let Some(on_exit) = on_exit {
        on_exit(guest_exit(&end, killed.load(Ordering::Acquire)));
    }
}

/// What the end of QEMU says about its guest. It ends with success only where
/// the guest powered off or, by `-no-reboot`, reset.
fn guest_exit(end: &End, killed: bool) -> VmExit {
    let (reason, message) = if end.clean {
        (Reason::GuestShutdown, "the guest shut down".into())
    } else if killed {
        (Reason::Killed, "the VM was ended on request".into())
    } else {
        let colon = if end.stderr.is_empty() { "" } else { ": " };
        let message = format!("QEMU {}{colon}{}", end.status, end.stderr);
        (Reason::EngineFailure, message)
    };
    VmExit {
        reason: reason.into(),
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    fn shell(script: &str) -> Keeper {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        Keeper::start(command, Vec::new(), std::thread::spawn(|| {})).unwrap()
    }

    fn exit_of(script: &str, kill: bool) -> VmExit {
        let (to, from) = channel();
        let mut keeper = shell(script);
        keeper.confirm(Box::new(move |exit| to.send(exit).unwrap()));
        if kill {
            keeper.kill();
        }
        from.recv().unwrap()
    }

    #[test]
    fn end_of_qemu_is_told_by_its_cause() {
        let exit = exit_of("exit 0", false);
        assert_eq!(exit.reason(), Reason::GuestShutdown);
        let exit = exit_of("echo bad thing >&2; exit 3", false);
        assert_eq!(exit.reason(), Reason::EngineFailure);
        assert_eq!(exit.message, "QEMU exited with code 3: bad thing");
        let exit = exit_of("exec sleep 1000", true);
        assert_eq!(exit.reason(), Reason::Killed);
    }

    #[test]
    fn end_before_confirmation_is_told_at_confirmation() {
        let (to, from) = channel();
        let keeper = shell("exit 0");
        keeper.ended.recv().unwrap();
        keeper.confirm(Box::new(move |exit| to.send(exit).unwrap()));
        assert_eq!(from.recv().unwrap().reason(), Reason::GuestShutdown);
    }

    #[test]
    fn refusal_to_start_gives_its_words() {
        let end = shell("echo no such machine >&2; exit 1").give_up().unwrap();
        assert_eq!(end.stderr, "no such machine");
    }

    #[test]
    fn missing_program_is_an_error() {
        let got = Keeper::start(
            Command::new("/nonexistent/qemu"),
            Vec::new(),
            std::thread::spawn(|| {}),
        );
        assert_eq!(got.err().unwrap().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn messages_are_kept_from_their_end() {
        let exit = exit_of("yes x | head -c 100000 >&2; echo last >&2; exit 1", false);
        assert!(exit.message.ends_with("last"), "{}", exit.message);
        assert!(exit.message.len() < 5000);
    }
}
