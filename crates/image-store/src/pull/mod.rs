//! Pulling images by the registry protocol (OCI distribution-spec 1.1).
//!
//! A pull runs as a task of its own: all who ask for the same image with the
//! same credentials share it. It goes on when one of them gives up; when the last
//! one does, it ends and leaves nothing behind.

mod auth;
mod cancel;
mod credentials_file;
mod hosts;
mod install;
mod registry;
mod sink;
mod transfer;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;

pub use auth::Credentials;
pub use credentials_file::CredentialsFileError;
pub use hosts::HostsError;
pub use registry::RegistryError;

use crate::{Digest, Image, ImageError, ImageStore, Reference};
use transfer::Transfer;

/// Why an image cannot be pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// A name that does not say where.
    #[error(
        "{name:?} names no registry and no default registry is configured: \
         pull HOST/{name}, or set the default registry"
    )]
    NoRegistry {
        /// The name.
        name: String,
    },
    /// The configuration of the registry is wrong.
    #[error("cannot use the configuration of the registry {registry}")]
    Hosts {
        /// The registry.
        registry: String,
        /// The reason.
        #[source]
        source: HostsError,
    },
    /// Nothing in the configuration may be pulled from.
    #[error("the configuration of the registry {registry} names no host that may resolve and pull")]
    NoHost {
        /// The registry.
        registry: String,
    },
    /// The node's own credentials cannot be used.
    #[error("cannot use the registry credentials of this node")]
    CredentialsFile(#[source] CredentialsFileError),
    /// Nobody waits for it any more.
    #[error("the pull was given up by all who asked for it")]
    GivenUp,
    /// All hosts failed.
    #[error("cannot get {what} {}from {host}", mirrors(.before))]
    Registry {
        /// A manifest's or blob's name.
        what: String,
        /// The address of the last one.
        host: String,
        /// What the others said, each with its address.
        before: Vec<String>,
        /// The reason.
        #[source]
        source: Box<RegistryError>,
    },
}

fn mirrors(failures: &[String]) -> String {
    let told = failures.iter().map(|failure| format!("from {failure}; "));
    told.collect()
}

/// How far a part of a pull is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The layer; `None` for the image as a whole.
    pub digest: Option<Digest>,
    /// What is being done.
    pub status: Status,
    /// Bytes done.
    pub current: u64,
    /// Bytes in all, 0 if that means nothing here.
    pub total: u64,
}

/// What is being done in a pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Manifest and configuration are fetched.
    Resolving,
    /// The layer is here already.
    Present,
    /// The layer is coming.
    Downloading,
    /// The layer is here and verified.
    Downloaded,
    /// The layers are made into one file system.
    Unpacking,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resolving => "resolving",
            Self::Present => "already present",
            Self::Downloading => "downloading",
            Self::Downloaded => "downloaded",
            Self::Unpacking => "unpacking",
        })
    }
}

type Listener = Box<dyn Fn(&Progress) + Send + Sync>;
type Outcome = Option<Result<Image, Arc<ImageError>>>;

/// What makes two pulls the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    reference: Reference,
    credentials: Option<Credentials>,
}

/// A pull that goes on.
#[derive(Clone)]
struct Flight {
    listeners: Arc<Mutex<Vec<Listener>>>,
    /// Its receivers are those who wait.
    outcome: Arc<watch::Sender<Outcome>>,
}

/// All pulls that go on.
#[derive(Default)]
pub(crate) struct Pulls {
    flights: Mutex<HashMap<Key, Flight>>,
}

impl fmt::Debug for Pulls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pulls").finish_non_exhaustive()
    }
}

/// Takes a pull off the list, however it ended.
struct Landing {
    store: ImageStore,
    key: Key,
    flight: Flight,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut flights = lock(&self.store.inner.pulls.flights);
        self.leave(&mut flights);
    }
}

impl Landing {
    /// Off the list, unless another pull of this name has begun.
    fn leave(&self, flights: &mut HashMap<Key, Flight>) {
        if let Some(other) = flights.get(&self.key)
            && Arc::ptr_eq(&other.outcome, &self.flight.outcome)
        {
            flights.remove(&self.key);
        }
    }

    /// Returns when nobody waits any more, and nobody can join.
    async fn given_up(&self) {
        loop {
            self.flight.outcome.closed().await;
            let mut flights = lock(&self.store.inner.pulls.flights);
            if self.flight.outcome.receiver_count() == 0 {
                return self.leave(&mut flights);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ImageStore {
    /// Pulls the image of that name from its registry, unless all of it is
    /// here; a tag is always looked up there. `progress` is called from the
    /// tasks that work, so it should be quick.
    ///
    /// # Errors
    /// If the name, the registry or the image is refused, or the disk is full;
    /// nothing of the image is left behind then.
    pub async fn pull(
        &self,
        name: &str,
        credentials: Option<Credentials>,
        progress: impl Fn(&Progress) + Send + Sync + 'static,
    ) -> Result<Image, ImageError> {
        let reference = name.parse::<Reference>()?.normalized(&self.inner.config);
        if reference.registry.is_none() {
            return Err(PullError::NoRegistry {
                name: name.to_owned(),
            }
            .into());
        }
        let key = Key {
            reference,
            credentials,
        };
        let mut outcome = self.join_or_start(key, Box::new(progress));
        let result = match outcome.wait_for(Option::is_some).await {
            Ok(result) => result.clone(),
            // The task panicked.
            Err(_) => None,
        };
        match result {
            Some(Ok(image)) => Ok(image),
            Some(Err(error)) => Err(ImageError::Shared(error)),
            None => Err(ImageError::Thread),
        }
    }

    fn join_or_start(&self, key: Key, listener: Listener) -> watch::Receiver<Outcome> {
        let mut flights = lock(&self.inner.pulls.flights);
        if let Some(flight) = flights.get(&key) {
            lock(&flight.listeners).push(listener);
            return flight.outcome.subscribe();
        }
        let (sender, outcome) = watch::channel(None);
        let flight = Flight {
            listeners: Arc::new(Mutex::new(vec![listener])),
            outcome: Arc::new(sender),
        };
        flights.insert(key.clone(), flight.clone());
        let landing = Landing {
            store: self.clone(),
            key: key.clone(),
            flight,
        };
        tokio::spawn(fly(self.clone(), key, landing));
        outcome
    }
}

/// Does the pull, or ends it when nobody waits for it.
async fn fly(store: ImageStore, key: Key, landing: Landing) {
    let flight = landing.flight.clone();
    let listeners = flight.listeners;
    let report = move |progress: Progress| {
        lock(&listeners)
            .iter()
            .for_each(|listener| listener(&progress));
    };
    let (canceller, cancelled) = cancel::channel();
    let work = async {
        match Transfer::new(store, key.reference, key.credentials, report, cancelled) {
            Ok(transfer) => transfer.run().await,
            Err(error) => Err(error),
        }
    };
    tokio::pin!(work);
    let result = tokio::select! {
        result = &mut work => result,
        () = landing.given_up() => {
            canceller.cancel();
            // It tidies up behind itself.
            work.await
        }
    };
    // Off the list first: who comes now starts afresh.
    drop(landing);
    flight.outcome.send_replace(Some(result.map_err(Arc::new)));
}
