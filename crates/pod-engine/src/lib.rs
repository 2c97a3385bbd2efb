//! The kubelet's part: a `v1.Pod` in, its containers run in a micro-VM, its
//! status out. Drives the `sandbox` crate; knows no VM, wire or gRPC.
//!
//! [`PodEngine`] is the whole of it: [`PodEngine::run_pod`] checks a manifest
//! ([`manifest`]), sizes its VM ([`sizing`]) and records the pod; a task per pod
//! (`pod_task`) then does what a pure state machine (`state`) says is next.
//! [`PodEngine::watch`] shows every change; [`PodEngine::log_files`] says where
//! the output lies.
//!
//! A pod is recorded before anything of it is made, and each instance of a
//! container before it is begun: a daemon that was killed goes on from there,
//! and healthy containers notice nothing.
//!
//! Objects that pods refer to (ConfigMaps, Secrets, PersistentVolumes, claims) are
//! kept by `objects`; `volumes` makes directories of them, and `env` variables.
//!
//! Locks: the list of pods, then a pod's record; a pod's volumes, then the objects.
//! None is held over an await.

mod backoff;
mod container_task;
mod engine;
mod env;
mod error;
mod expand;
mod facts;
mod images;
pub mod manifest;
mod merge;
mod mounts;
mod network;
mod objects;
mod observe;
mod plan;
mod pod_task;
mod record;
pub mod sizing;
mod state;
mod volumes;

pub use backoff::Backoff;
pub use engine::{Config, LogFile, LogFiles, PodEngine};
pub use error::{EngineError, ErrorKind};
pub use objects::{Applied, Bytes, Kind, Object, ObjectError, ObjectKey, ObjectSummary, Outcome};
pub use record::{ContainerState, ContainerStatus, Phase, Pod, Stage, Vm};
