//! The network of this host's pods, and the plan for each.

use crate::cni::chain::{Chain, Target};
use crate::cni::directory::Directory;
use crate::cni::list::NetworkList;
use crate::cni::request::{self, Capabilities, PodIdentity};
use crate::error::NetworkError;
use crate::record::{NetworkRecord, Phase, RecordCache, this_boot};
use crate::status::Versions;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, Weak};
use std::time::Duration;

/// The most that a plugin may take for what nobody's pod waits for but a caller
/// does: STATUS and GC.
const ASIDE: Duration = Duration::from_secs(10);

/// Where things are, and what is the default.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// Copies of records are below `network` of it. Goes with a reboot.
    pub run_dir: PathBuf,
    /// Where the namespaces are, by the pods' ids; others may have theirs there, too.
    /// Goes with a reboot.
    pub netns_dir: PathBuf,
    /// Network configurations.
    pub conf_dir: PathBuf,
    /// Plugins; the first that has a program of the name wins.
    pub plugin_dirs: Vec<PathBuf>,
    /// How long one run of one plugin may take.
    pub plugin_timeout: Duration,
    /// Frames from a guest with another's MAC or IP are dropped, unless the
    /// request says otherwise.
    pub anti_spoofing: bool,
}

impl NetworkConfig {
    /// The usual directories, and anti-spoofing on.
    #[must_use]
    pub fn new(run_dir: impl Into<PathBuf>) -> Self {
        Self {
            run_dir: run_dir.into(),
            // Where other runtimes and `ip netns` have them: a CNI that is itself a pod
            // (Multus) mounts this one.
            netns_dir: "/run/netns".into(),
            conf_dir: "/etc/cni/net.d".into(),
            plugin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            plugin_timeout: Duration::from_secs(60),
            anti_spoofing: true,
        }
    }
}

/// A pod's wish for a network.
#[derive(Debug, Clone)]
pub struct AttachRequest {
    /// Whose.
    pub pod: PodIdentity,
    /// What plugins with the capability are told.
    pub capabilities: Capabilities,
    /// Queues of each TAP, one to 256; the descriptors returned.
    pub queues: u16,
    /// None: as the configuration says.
    pub anti_spoofing: Option<bool>,
}

/// The network of this host's pods.
#[derive(Debug)]
pub struct Network {
    pub(crate) config: NetworkConfig,
    pub(crate) directory: Directory,
    pub(crate) cache: RecordCache,
    pub(crate) versions: Versions,
    /// One lock a sandbox that somebody works on.
    turns: Mutex<HashMap<String, Weak<Mutex<()>>>>,
    /// Shared by attaches and removals, had alone by GC.
    pub(crate) attaching: RwLock<()>,
}

impl Network {
    /// Makes its directory below `run_dir`; touches nothing else.
    ///
    /// # Errors
    ///
    /// It cannot be made.
    pub fn new(config: NetworkConfig) -> Result<Self, NetworkError> {
        Ok(Self {
            cache: RecordCache::open(config.run_dir.join("network"))?,
            directory: Directory::new(config.conf_dir.clone()),
            versions: Versions::default(),
            turns: Mutex::default(),
            attaching: RwLock::default(),
            config,
        })
    }

    /// Decides by the configuration of this moment what the pod's network will
    /// be. Makes nothing: the caller stores the record, then attaches.
    ///
    /// # Errors
    ///
    /// There is no usable configuration, or the identity cannot be given to
    /// plugins.
    pub fn plan(&self, request: AttachRequest) -> Result<NetworkRecord, NetworkError> {
        if let Some((part, value)) = request::unfit(&request.pod) {
            return Err(NetworkError::Identity {
                part,
                value: value.to_owned(),
            });
        }
        let list = self.current_list().map_err(NetworkError::NotReady)?;
        let netns = self.netns_path(&request.pod.sandbox_id);
        Ok(NetworkRecord {
            netns,
            pod: request.pod,
            interface: "eth0".into(),
            list: NetworkList::clone(&list),
            capabilities: request.capabilities,
            anti_spoofing: request.anti_spoofing.unwrap_or(self.config.anti_spoofing),
            queues: request.queues.clamp(1, 256),
            phase: Phase::Planned,
            boot: this_boot(),
            result: None,
            nics: Vec::new(),
        })
    }

    pub(crate) fn netns_path(&self, id: &str) -> PathBuf {
        self.config.netns_dir.join(format!("spherule-{id}"))
    }

    pub(crate) fn chain<'a>(&'a self, list: &'a NetworkList) -> Chain<'a> {
        Chain {
            list,
            directories: &self.config.plugin_dirs,
            timeout: self.config.plugin_timeout,
        }
    }

    /// How long a plugin may take for STATUS or GC.
    pub(crate) fn aside_timeout(&self) -> Duration {
        self.config.plugin_timeout.min(ASIDE)
    }

    /// To be held while plugins ADD or DEL.
    pub(crate) fn attaching(&self) -> RwLockReadGuard<'_, ()> {
        self.attaching
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` while nobody else works on that sandbox's network.
    pub(crate) fn in_turn<T>(&self, id: &str, work: impl FnOnce() -> T) -> T {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| turn.strong_count() > 0);
            let turn = turns.get(id).and_then(Weak::upgrade).unwrap_or_default();
            turns.insert(id.to_owned(), Arc::downgrade(&turn));
            turn
        };
        // The lock guards no data, so a panic under it leaves nothing torn.
        let _guard = turn.lock().unwrap_or_else(PoisonError::into_inner);
        work()
    }
}

impl NetworkRecord {
    /// The capabilities that the pod asks for and no plugin of its network
    /// declares: hostPort without portmap, say.
    #[must_use]
    pub fn ignored_capabilities(&self) -> Vec<String> {
        self.capabilities
            .arguments()
            .into_keys()
            .filter(|name| {
                !self
                    .list
                    .plugins
                    .iter()
                    .any(|plugin| plugin.capabilities().contains(name))
            })
            .map(str::to_owned)
            .collect()
    }

    pub(crate) fn target(&self, netns: String) -> Target<'_> {
        Target {
            container_id: &self.pod.sandbox_id,
            netns,
            interface: &self.interface,
            arguments: request::arguments(&self.pod),
            capabilities: self.capabilities.arguments(),
        }
    }
}
