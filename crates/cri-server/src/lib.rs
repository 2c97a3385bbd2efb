//! The Kubernetes CRI v1: RuntimeService and ImageService calls to calls of the
//! sandbox crate and the image store.
//!
//! One file a call: validate, convert, one call into the domain, convert back.
//! `service` delegates, traces and maps errors; status codes are made in `error`
//! only, but for that of a caller's own deadline (`deadline`). What was made through
//! this server is known by its record ([`sandbox::SandboxSpec::caller_data`]): other
//! sandboxes of the node do not exist for its clients, so that no kubelet ends what it
//! did not start.

mod capabilities;
mod clock;
mod config;
mod container_attach;
mod container_checkpoint;
mod container_create;
mod container_exec;
mod container_exec_sync;
mod container_list;
mod container_remove;
mod container_reopen_log;
mod container_start;
mod container_status;
mod container_stop;
mod container_stream;
mod container_update_resources;
mod convert;
mod deadline;
mod dns;
mod error;
mod events;
mod events_ledger;
mod events_missing;
mod filters;
mod image_convert;
mod image_fs_info;
mod image_list;
mod image_pull;
mod image_remove;
mod image_service;
mod image_status;
mod image_stream;
mod metrics;
mod metrics_table;
mod mounts;
mod namespaces;
mod network;
mod pages;
mod process;
mod record;
mod resources;
mod runtime_config;
mod runtime_config_update;
mod sandbox_checkpoint;
mod sandbox_list;
mod sandbox_port_forward;
mod sandbox_remove;
mod sandbox_restore;
mod sandbox_run;
mod sandbox_status;
mod sandbox_stop;
mod sandbox_stream;
mod sandbox_update_resources;
mod seccomp;
mod security;
mod service;
mod signals;
mod sizing;
mod stats;
mod stats_convert;
mod stats_figures;
mod status;
mod streaming;
mod version;

pub use config::Config;
pub use deadline::{Bounded, Deadlines};
pub use error::CriError;
pub use image_service::ImageServer;
pub use service::RuntimeServer;
pub use streaming::streaming_backend;
