//! A running VM as its sandbox holds it: the VMM's process and control wire,
//! and the agent's connection, which may come and go.

use crate::config::{Paths, Timeouts};
use crate::death;
use crate::error::{SandboxError, chain};
use crate::guest::{GuestClient, GuestError};
use crate::vmm::{Process, Vmm};
use guest_api::proto::{client_message::Call, response};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::sync::watch;
use vm_launcher::Code;
use wire::WireError;

/// How long after a connection broke its VM may be found dead.
const DEATH_PATIENCE: Duration = Duration::from_millis(500);

/// A VM that was started and may have died since.
#[derive(Debug)]
pub(crate) struct Live {
    id: String,
    pub(crate) process: Process,
    pub(crate) vmm: Vmm,
    pub(crate) paths: Paths,
    /// The agent's connection, `None` while there is none.
    guest: watch::Sender<Option<Arc<GuestClient>>>,
    /// Why the VM ended, once it has.
    died: watch::Sender<Option<String>>,
    /// Number of the last event that was taken from the agent.
    pub(crate) last_event: AtomicU64,
}

impl Live {
    pub(crate) fn new(id: &str, process: Process, vmm: Vmm, paths: Paths) -> Self {
        Self {
            id: id.to_owned(),
            process,
            vmm,
            paths,
            guest: watch::Sender::new(None),
            died: watch::Sender::new(None),
            last_event: AtomicU64::new(0),
        }
    }

    pub(crate) fn set_guest(&self, guest: Option<Arc<GuestClient>>) {
        self.guest.send_replace(guest);
    }

    /// Says that the VM is gone; whoever waits for it learns why.
    pub(crate) fn set_died(&self, cause: String) {
        self.died.send_replace(Some(cause));
        self.guest.send_replace(None);
    }

    /// Waits for the VM's end; returns the cause.
    pub(crate) async fn died(&self) -> String {
        let mut died = self.died.subscribe();
        match died.wait_for(Option::is_some).await {
            Ok(cause) => cause.clone().unwrap_or_default(),
            Err(_) => String::new(),
        }
    }

    /// Why the VM ended, if it has.
    pub(crate) fn cause(&self) -> Option<String> {
        self.died.borrow().clone()
    }

    /// Makes a call to the agent: waits for a connection within the call's time,
    /// fails at once when the VM dies.
    pub(crate) async fn call(
        &self,
        what: &'static str,
        call: Call,
        timeouts: &Timeouts,
    ) -> Result<response::Result, SandboxError> {
        self.call_within(what, call, timeouts.call).await
    }

    /// [`Self::call`] with a limit of its own.
    pub(crate) async fn call_within(
        &self,
        what: &'static str,
        call: Call,
        limit: Duration,
    ) -> Result<response::Result, SandboxError> {
        let work = async {
            let guest = self.connected().await?;
            guest.call(call, limit).await
        };
        self.within(what, limit, work).await
    }

    /// Does work that needs the guest: at most for `limit`, and no longer than the
    /// VM lives.
    pub(crate) async fn within<T>(
        &self,
        what: &'static str,
        limit: Duration,
        work: impl Future<Output = Result<T, GuestError>>,
    ) -> Result<T, SandboxError> {
        let result = tokio::select! {
            result = tokio::time::timeout(limit, work) => {
                result.unwrap_or(Err(GuestError::Timeout(limit)))
            }
            cause = self.died() => return Err(self.dead(cause)),
        };
        match result {
            Ok(result) => Ok(result),
            Err(error) => Err(self.explain(what, error).await),
        }
    }

    /// What a call's caller is told of an error.
    pub(crate) async fn explain(&self, what: &'static str, error: GuestError) -> SandboxError {
        if matches!(
            error,
            GuestError::Lost | GuestError::Connect(_) | GuestError::Wire(WireError::Io(_))
        ) {
            // The connection often breaks a moment before the VM is known to be
            // dead; then that is the cause to tell.
            if let Ok(cause) = tokio::time::timeout(DEATH_PATIENCE, self.died()).await {
                return self.dead(cause);
            }
        }
        self.failed(what, &error)
    }

    pub(crate) fn dead(&self, cause: String) -> SandboxError {
        SandboxError::VmDied {
            id: self.id.clone(),
            cause,
        }
    }

    /// An error of a VMM that died at it: its death says more.
    pub(crate) async fn or_death<T>(
        &self,
        result: Result<T, SandboxError>,
    ) -> Result<T, SandboxError> {
        let Err(SandboxError::Vmm { .. }) = result else {
            return result;
        };
        match tokio::time::timeout(DEATH_PATIENCE, self.died()).await {
            Ok(cause) => Err(self.dead(cause)),
            Err(_) => result,
        }
    }

    async fn connected(&self) -> Result<Arc<GuestClient>, GuestError> {
        let mut guest = self.guest.subscribe();
        let found = guest.wait_for(Option::is_some).await;
        found.ok().and_then(|g| g.clone()).ok_or(GuestError::Lost)
    }

    fn failed(&self, what: &'static str, error: &GuestError) -> SandboxError {
        match error {
            GuestError::Timeout(limit) => SandboxError::AgentTimeout {
                id: self.id.clone(),
                what,
                seconds: limit.as_secs(),
                last_words: death::last_words(&self.paths),
            },
            error => SandboxError::Guest {
                id: self.id.clone(),
                what,
                code: match error {
                    GuestError::Refused { code, .. } => *code,
                    _ => Code::Unavailable,
                },
                message: chain(error),
            },
        }
    }

    /// An answer of the wrong kind.
    pub(crate) fn wrong_answer(&self, what: &'static str) -> SandboxError {
        self.failed(what, &GuestError::WrongAnswer)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A VM whose process is the test itself, which never ends.
    pub(crate) fn live() -> Arc<Live> {
        let here = std::env::current_dir().unwrap();
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let fields = stat.rsplit_once(") ").unwrap().1;
        let started = fields.split(' ').nth(19).unwrap().parse().unwrap();
        let process = Process::adopt(&here, std::process::id(), started).unwrap();
        let paths = Paths {
            state: here.join("nowhere"),
            run: here.join("nowhere"),
        };
        let vmm = Vmm::new("s", &paths);
        Arc::new(Live::new("s", process, vmm, paths))
    }

    #[tokio::test]
    async fn call_under_way_ends_with_the_vm_and_tells_its_cause() {
        let live = live();
        let dying = Arc::clone(&live);
        let work = live.within("wait", Duration::from_secs(600), async {
            dying.set_died("it was hit".into());
            std::future::pending::<Result<(), GuestError>>().await
        });
        let error = work.await.unwrap_err();
        let SandboxError::VmDied { cause, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(cause, "it was hit");
    }

    #[tokio::test]
    async fn silent_guest_is_waited_for_to_the_calls_own_limit() {
        let call = Call::ListContainers(Default::default());
        let limit = Duration::from_millis(10);
        let error = live().call_within("list", call, limit).await.unwrap_err();
        assert!(
            matches!(error, SandboxError::AgentTimeout { .. }),
            "{error}"
        );
    }

    #[tokio::test]
    async fn broken_connection_of_a_vm_that_dies_then_is_its_death() {
        let live = live();
        let (told, ()) = tokio::join!(live.explain("wait", GuestError::Lost), async {
            live.set_died("it was hit".into());
        });
        assert!(matches!(told, SandboxError::VmDied { .. }), "{told}");
        let alive = tests::live().explain("wait", GuestError::Lost).await;
        assert!(matches!(alive, SandboxError::Guest { .. }), "{alive}");
    }
}
