//! The host's side of spherule-vmm: starts the process, finds it again after a
//! restart of the daemon, and speaks its control wire. Knows no pod.
//!
//! Every call blocks; an async caller uses a blocking thread (spawn_blocking)
//! and, for the end of a process, its pidfd ([`VmmProcess::pidfd`]).
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # use std::{fs::File, path::Path};
//! # let request = vm_spec::proto::BootRequest::default();
//! let launcher = vm_launcher::Launcher::new("/usr/bin/spherule-vmm");
//! let dir = Path::new("/run/spherule/vm/1");
//! let process = launcher.spawn(dir, File::create(dir.join("vmm.log"))?, None)?;
//! let mut vmm = process.connect()?;
//! let (kernel, initramfs) = (File::open("vmlinux")?, File::open("initramfs.cpio")?);
//! let log = File::options().create(true).read(true).append(true).open("kernel.log")?;
//! vmm.boot(&request, &kernel, &initramfs, &log)?;
//! # Ok(())
//! # }
//! ```

mod cgroup;
mod client;
mod error;
mod launcher;
mod process;
mod usage;

pub use cgroup::{Cgroup, CgroupError};
pub use client::{VmmClient, exit_record};
pub use error::{CallError, ClientError, LaunchError};
pub use launcher::Launcher;
pub use process::VmmProcess;
pub use usage::{HostUsage, host_usage};
pub use wire::proto::error::Code;
