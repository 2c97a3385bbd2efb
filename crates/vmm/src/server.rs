//! The process's life: binds the control socket, serves connections, ends with
//! the VM.
//!
//! At the end the cause stands in `vm-exit.json` before anything is taken down;
//! then the containers' logs are drained, requests that wait are answered, and
//! the process ends. A daemon that is connected or comes later finds the cause
//! in the file.

use crate::exit_file;
use crate::lifecycle::Lifecycle;
use crate::session;
use crate::termination;
use rustix::fs::Mode;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use vm_spec::proto::{VmExit, vm_exit::Reason};
use wire::WireError;

/// Most control connections at a time.
const MAX_CONNECTIONS: usize = 32;
/// A process that nobody has booted nor is connected to ends after this: its
/// daemon died right after it started it.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the containers' logs may take once the guest is gone. They are in
/// socket buffers; only a full disk takes longer.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the last requests may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the process could not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The directory cannot be used.
    #[error("the VM's directory {} cannot be entered", .0.display())]
    Dir(PathBuf, #[source] io::Error),
    /// Another process serves this directory.
    #[error("another spherule-vmm runs in {}", .0.display())]
    Taken(PathBuf),
    /// The control socket could not be made.
    #[error("the control socket in {} cannot be made", .0.display())]
    Socket(PathBuf, #[source] io::Error),
    /// The host refused the thread that waits for signals.
    #[error("signals cannot be waited for")]
    Signals(#[source] io::Error),
    /// The exit record could not be written.
    #[error("how the VM ended cannot be recorded")]
    Record(#[source] io::Error),
}

/// Connections, and requests in work.
#[derive(Debug)]
pub(crate) struct Activity {
    counts: Mutex<Counts>,
    changed: Condvar,
}

#[derive(Debug)]
struct Counts {
    connections: usize,
    requests: usize,
    /// Since when there has been no connection.
    alone_since: Instant,
}

/// Counts down when dropped.
pub(crate) struct Count<'a> {
    activity: &'a Activity,
    request: bool,
}

impl Activity {
    fn new() -> Self {
        Self {
            counts: Mutex::new(Counts {
                connections: 0,
                requests: 0,
                alone_since: Instant::now(),
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request is in work as long as the result lives.
    pub(crate) fn begin_request(&self) -> Count<'_> {
        self.lock().requests += 1;
        Count {
            activity: self,
            request: true,
        }
    }

    fn begin_connection(&self) -> Option<Count<'_>> {
        let mut counts = self.lock();
        if counts.connections >= MAX_CONNECTIONS {
            return None;
        }
        counts.connections += 1;
        Some(Count {
            activity: self,
            request: false,
        })
    }

    /// How long nobody has been connected; `None` while somebody is.
    fn alone(&self) -> Option<Duration> {
        let counts = self.lock();
        (counts.connections == 0).then(|| counts.alone_since.elapsed())
    }

    fn wait_answered(&self, timeout: Duration) {
        let counts = self.lock();
        drop(
            self.changed
                .wait_timeout_while(counts, timeout, |counts| counts.requests > 0),
        );
    }
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        let mut counts = self.activity.lock();
        if self.request {
            counts.requests -= 1;
        } else {
            counts.connections -= 1;
            counts.alone_since = Instant::now();
        }
        drop(counts);
        self.activity.changed.notify_all();
    }
}

/// Serves the VM of `dir` from its boot to its end. `started` is when the
/// process began. Changes the working directory, the umask and the signal mask of
/// the process; SIGTERM and SIGINT end the VM and are recorded as its end.
///
/// # Errors
/// If the directory or the socket cannot be used, or the end not be recorded.
pub fn serve(dir: &Path, started: Instant) -> Result<(), ServeError> {
    // From here on everything is named relative to the directory: a socket's
    // address has room for some 100 bytes only.
    std::env::set_current_dir(dir).map_err(|e| ServeError::Dir(dir.to_owned(), e))?;
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    let listener = bind(dir)?;
    let lifecycle = Arc::new(Lifecycle::new(Path::new("."), started));
    termination::watch(lifecycle.exit.clone()).map_err(ServeError::Signals)?;
    let activity = Arc::new(Activity::new());
    let (accept_lifecycle, accept_activity) = (lifecycle.clone(), activity.clone());
    std::thread::Builder::new()
        .name("control".into())
        .spawn(move || accept(&listener, &accept_lifecycle, &accept_activity))
        .map_err(|e| ServeError::Socket(dir.to_owned(), e))?;
    let exit = wait_exit(&lifecycle, &activity, ORPHAN_TIMEOUT);
    tracing::info!(
        reason = exit.reason().as_str_name(),
        message = exit.message,
        "the VM ended"
    );
    let recorded = exit_file::write(Path::new("."), &exit).map_err(ServeError::Record);
    lifecycle.release();
    lifecycle.logs.drain_all(Instant::now() + DRAIN_TIMEOUT);
    activity.wait_answered(ANSWER_TIMEOUT);
    for socket in [vm_spec::files::CONTROL_SOCKET, vm_spec::files::VSOCK_SOCKET] {
        // Nobody answers there any more; gone already is fine.
        let _ = std::fs::remove_file(socket);
    }
    recorded
}

/// Binds the control socket, for this user alone, in place of one that a killed
/// process left.
fn bind(dir: &Path) -> Result<UnixListener, ServeError> {
    let path = Path::new(vm_spec::files::CONTROL_SOCKET);
    let fail = |e| ServeError::Socket(dir.to_owned(), e);
    if UnixStream::connect(path).is_ok() {
        return Err(ServeError::Taken(dir.to_owned()));
    }
    for stale in [path, Path::new(vm_spec::files::EXIT)] {
        match std::fs::remove_file(stale) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(fail(e)),
            _ => {}
        }
    }
    let listener = UnixListener::bind(path).map_err(fail)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
    Ok(listener)
}

/// A thread for each connection.
fn accept(listener: &UnixListener, lifecycle: &Arc<Lifecycle>, activity: &Arc<Activity>) {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: the next attempt must not spin.
                tracing::warn!(%error, "a control connection could not be accepted");
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let (lifecycle, activity) = (lifecycle.clone(), activity.clone());
        let spawned = std::thread::Builder::new()
            .name("session".into())
            .spawn(move || {
                let Some(_count) = activity.begin_connection() else {
                    tracing::warn!("a control connection was refused: {MAX_CONNECTIONS} are open");
                    return;
                };
                match session::serve(stream, &lifecycle, &activity) {
                    Ok(()) => {}
                    Err(error @ WireError::Io(_)) => {
                        tracing::debug!(%error, "a control connection broke");
                    }
                    Err(error) => tracing::warn!(%error, "a control connection was ended"),
                }
            });
        if let Err(error) = spawned {
            tracing::warn!(%error, "a control connection could not be served");
        }
    }
}

/// Waits for the end of the VM, or for nobody ever wanting one.
fn wait_exit(lifecycle: &Lifecycle, activity: &Activity, orphan_timeout: Duration) -> VmExit {
    loop {
        let alone = activity.alone().filter(|_| lifecycle.is_idle());
        let left = orphan_timeout.saturating_sub(alone.unwrap_or_default());
        if let Some(exit) = lifecycle.exit.wait(left) {
            return exit;
        }
        if lifecycle.is_idle()
            && activity
                .alone()
                .is_some_and(|alone| alone >= orphan_timeout)
        {
            lifecycle.exit.set(VmExit {
                reason: Reason::Killed.into(),
                message: "nobody booted a VM, and nobody is connected".into(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_that_nobody_wants_ends() {
        let lifecycle = Lifecycle::new(Path::new("/nonexistent"), Instant::now());
        let activity = Activity::new();
        let exit = wait_exit(&lifecycle, &activity, Duration::from_millis(20));
        assert!(exit.message.contains("nobody"), "{}", exit.message);
    }

    #[test]
    fn connections_are_bounded_and_counted_down() {
        let activity = Activity::new();
        let open: Vec<_> = std::iter::from_fn(|| activity.begin_connection()).collect();
        assert_eq!(open.len(), MAX_CONNECTIONS);
        assert_eq!(activity.alone(), None);
        drop(open);
        assert!(activity.alone().is_some());
        assert!(activity.begin_connection().is_some());
    }
}
