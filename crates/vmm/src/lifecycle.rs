//! What state the VM is in, and every call on it.
//!
//! IDLE, by Boot RUNNING, by Pause PAUSED and by Resume back, and from anywhere
//! EXITED, which ends the process. How it ended is set once ([`ExitSlot`]), by
//! whoever notices first. Locks: the machine's, which is held during calls into
//! the engine; the exit slot's, under which nothing is called.

use crate::builder::{self, BootFiles, BuildError, Handles};
use crate::engine::{self, RunningVm};
use crate::kernel_log::KernelLog;
use crate::logs::Logs;
use std::fs::File;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use virtio_devices::{
    BayError, BayHandle, FsHandle, IoLimits, Rate, ShareAccess, ShareError, VolumeOptions,
};
use vm_spec::proto::{
    self, AttachDiskRequest, Bay, BootRequest, BootResponse, Extent, NicStatus, Share,
    StateResponse, VmExit, VmState, vm_exit::Reason,
};

/// How long a shutdown waits for a call into the engine that hangs; then the end
/// of the process ends the VM.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The call does not fit the VM's state.
    #[error("the VM {0}")]
    State(&'static str),
    /// The VM is gone.
    #[error("the VM has ended: {0}")]
    Exited(String),
    /// The boot request cannot be met.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The engine failed.
    #[error("{0}")]
    Engine(String),
    /// A disk call failed.
    #[error(transparent)]
    Bay(#[from] BayError),
    /// The request names no bay.
    #[error("the request names no bay")]
    NoBay,
    /// The boot request asked for no bay of volumes.
    #[error("the VM was booted without a bay for volumes")]
    NoVolumeBay,
    /// What only volumes can be.
    #[error("only volumes are read-only, have a serial number or limits")]
    NotOfVolumes,
    /// A rate or a burst is 0.
    #[error("a rate limit and its burst must be at least 1")]
    RateLimit,
    /// A share call failed.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// The boot request did not ask for shares.
    #[error("the VM was booted without a device for shares")]
    NoShares,
    /// An extent's name is empty or too long.
    #[error("the name of a disk must have 1 to 256 bytes")]
    DiskName,
}

/// How the VM ended, once it has.
#[derive(Debug, Default)]
pub(crate) struct ExitSlot {
    exit: Mutex<Option<VmExit>>,
    set: Condvar,
}

impl ExitSlot {
    /// The first cause counts.
    pub(crate) fn set(&self, exit: VmExit) {
        let mut slot = self.lock();
        if slot.is_none() {
            *slot = Some(exit);
            self.set.notify_all();
        }
    }

    /// How it ended, if it has.
    pub(crate) fn get(&self) -> Option<VmExit> {
        self.lock().clone()
    }

    /// Waits for the end, or for `timeout`.
    pub(crate) fn wait(&self, timeout: Duration) -> Option<VmExit> {
        let slot = self.lock();
        let (slot, _) = self
            .set
            .wait_timeout_while(slot, timeout, |slot| slot.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        slot.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<VmExit>> {
        self.exit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The one VM of this process.
pub(crate) struct Lifecycle {
    dir: PathBuf,
    started: Instant,
    machine: Mutex<Phase>,
    /// How it ended.
    pub(crate) exit: Arc<ExitSlot>,
    /// The containers' logs.
    pub(crate) logs: Logs,
}

enum Phase {
    Idle,
    Booting,
    Booted(Booted),
}

struct Booted {
    request: BootRequest,
    vm: Box<dyn RunningVm>,
    paused: bool,
    handles: Handles,
}

impl Lifecycle {
    /// Idle, in `dir`; `started` is when the process began.
    pub(crate) fn new(dir: &Path, started: Instant) -> Self {
        Self {
            dir: dir.to_owned(),
            started,
            machine: Mutex::new(Phase::Idle),
            exit: Arc::default(),
            logs: Logs::new(dir.join(vm_spec::files::VSOCK_SOCKET)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Phase> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No boot request has come, or none that could be met.
    pub(crate) fn is_idle(&self) -> bool {
        // A machine that is being used is not idle.
        let phase = self.machine.try_lock();
        phase.is_ok_and(|phase| matches!(*phase, Phase::Idle))
    }

    /// Boots the VM; `read_at` is when the request had been read.
    pub(crate) fn boot(
        &self,
        request: BootRequest,
        files: BootFiles,
        read_at: Instant,
    ) -> Result<BootResponse, CallError> {
        {
            let mut phase = self.lock();
            match *phase {
                Phase::Idle => *phase = Phase::Booting,
                Phase::Booting => return Err(CallError::State("is booting already")),
                Phase::Booted(_) => return Err(CallError::State("was booted already")),
            }
        }
        // Without the lock: this takes a while, and others may ask for the state.
        let result = self.start_guest(&request, files);
        let mut phase = self.lock();
        match result {
            Ok((vm, handles)) => {
                *phase = Phase::Booted(Booted {
                    request,
                    vm,
                    paused: false,
                    handles,
                });
                Ok(BootResponse {
                    request_ns: nanos(read_at - self.started),
                    running_ns: nanos(self.started.elapsed()),
                })
            }
            Err(error) => {
                *phase = Phase::Idle;
                Err(error)
            }
        }
    }

    fn start_guest(
        &self,
        request: &BootRequest,
        files: BootFiles,
    ) -> Result<(Box<dyn RunningVm>, Handles), CallError> {
        let exit = self.exit.clone();
        let on_exit = move |how: VmExit, log: &Mutex<KernelLog>| exit.set(explain(how, log));
        let (machine, handles) = builder::build(request, files, &self.dir, on_exit)?;
        let vm = engine::boot(request.engine(), machine)
            .map_err(|error| CallError::Engine(format!("{error:#}")))?;
        Ok((vm, handles))
    }

    /// Runs `call` on a booted VM that has not ended.
    fn with_vm<T>(
        &self,
        call: impl FnOnce(&mut Booted) -> Result<T, CallError>,
    ) -> Result<T, CallError> {
        if let Some(exit) = self.exit.get() {
            return Err(CallError::Exited(exit.message));
        }
        match &mut *self.lock() {
            Phase::Booted(booted) => call(booted),
            Phase::Idle | Phase::Booting => Err(CallError::State("is not booted")),
        }
    }

    /// Stops all vCPUs. Of a paused VM: success.
    pub(crate) fn pause(&self) -> Result<(), CallError> {
        self.with_vm(|booted| {
            if !booted.paused {
                booted.vm.pause().map_err(engine_error)?;
                booted.paused = true;
            }
            Ok(())
        })
    }

    /// Lets the vCPUs go on. Of a running VM: success.
    pub(crate) fn resume(&self) -> Result<(), CallError> {
        self.with_vm(|booted| {
            if booted.paused {
                booted.vm.resume().map_err(engine_error)?;
                booted.paused = false;
            }
            Ok(())
        })
    }

    /// Ends the VM at once; when this returns, it is said how it ended.
    pub(crate) fn shutdown(&self) {
        let deadline = Instant::now() + KILL_PATIENCE;
        loop {
            match self.machine.try_lock() {
                Ok(mut phase) => {
                    if let Phase::Booted(booted) = &mut *phase {
                        booted.vm.kill();
                    }
                    break;
                }
                Err(_) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(_) => break,
            }
        }
        // Where the engine did not say so (not booted, booting, hanging).
        self.exit.set(VmExit {
            reason: Reason::Killed.into(),
            message: "the VM was ended on request".into(),
        });
    }

    /// The process is about to end: ends the devices, so that the containers'
    /// streams end too. Gives up on an engine that hangs.
    pub(crate) fn release(&self) {
        let deadline = Instant::now() + KILL_PATIENCE;
        while Instant::now() < deadline {
            if let Ok(mut phase) = self.machine.try_lock() {
                let old = std::mem::replace(&mut *phase, Phase::Idle);
                drop(phase);
                drop(old);
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Everything about the VM.
    pub(crate) fn state(&self) -> StateResponse {
        let exit = self.exit.get();
        let mut response = StateResponse {
            vmm_pid: std::process::id(),
            logs: self.logs.statuses(),
            ..StateResponse::default()
        };
        let state = match &*self.lock() {
            Phase::Idle | Phase::Booting => VmState::Idle,
            Phase::Booted(booted) => {
                response.engine = booted.request.engine;
                response.vcpus = booted.request.vcpus;
                response.memory_mib = booted.request.memory_mib;
                response.engine_pid = booted.vm.child_pid().unwrap_or(0);
                response.extents = booted.extents();
                response.shares = booted.shares();
                response.nics = booted.nics();
                if booted.paused {
                    VmState::Paused
                } else {
                    VmState::Running
                }
            }
        };
        let state = if exit.is_some() {
            VmState::Exited
        } else {
            state
        };
        response.state = state.into();
        response.exit = exit;
        response
    }

    /// Attaches a file to a bay.
    pub(crate) fn attach_disk(
        &self,
        request: &AttachDiskRequest,
        file: File,
    ) -> Result<Extent, CallError> {
        let name = request.name.as_str();
        if name.is_empty() || name.len() > 256 {
            return Err(CallError::DiskName);
        }
        let options = VolumeOptions {
            read_only: request.read_only,
            serial: request.serial.clone(),
            limits: limits(request.limits.as_ref())?,
        };
        self.with_vm(|booted| {
            // A name is unique in the VM, not only in its bay.
            if booted.bay_of(name).is_some() {
                return Err(BayError::NameTaken(name.to_owned()).into());
            }
            let bay = request.bay();
            if bay == Bay::Volumes {
                let (_, handle) = booted.emptiest().ok_or(CallError::NoVolumeBay)?;
                handle.attach_volume(name, file, options)?;
            } else if options != VolumeOptions::default() {
                return Err(CallError::NotOfVolumes);
            } else if bay == Bay::Unspecified {
                return Err(CallError::NoBay);
            } else {
                let handles = &booted.handles;
                let handle = match bay {
                    Bay::ReadOnly => &handles.read_only,
                    _ => &handles.writable,
                };
                handle.attach(name, file)?;
            }
            booted.extent(name)
        })
    }

    /// Detaches a file from whichever bay it is in.
    pub(crate) fn detach_disk(&self, name: &str) -> Result<(), CallError> {
        self.with_bay_of(name, |bay| bay.detach(name))
    }

    /// Lets the guest have what a volume has grown by.
    pub(crate) fn resize_disk(&self, name: &str) -> Result<Extent, CallError> {
        self.with_bay_of(name, |bay| bay.resize(name).map(drop))?;
        self.with_vm(|booted| booted.extent(name))
    }

    /// Changes what a disk may do.
    pub(crate) fn limit_disk(
        &self,
        name: &str,
        limited: Option<&proto::IoLimits>,
    ) -> Result<(), CallError> {
        let limits = limits(limited)?;
        self.with_bay_of(name, |bay| bay.limit(name, limits))
    }

    /// Calls the bay that has the extent, without the machine's lock: it may wait
    /// for a request that is being done.
    fn with_bay_of<T>(
        &self,
        name: &str,
        call: impl FnOnce(&BayHandle) -> Result<T, BayError>,
    ) -> Result<T, CallError> {
        let bay = self.with_vm(|booted| {
            let found = booted.bay_of(name);
            found.ok_or_else(|| BayError::NoSuchExtent(name.to_owned()).into())
        })?;
        Ok(call(&bay)?)
    }

    /// Shares a directory or file with the guest.
    pub(crate) fn attach_share(&self, share: &Share, root: OwnedFd) -> Result<(), CallError> {
        let shares = self.with_vm(|booted| booted.share_handle())?;
        let access = match (share.read_only, share.writable_beneath) {
            (false, _) => ShareAccess::Writable,
            (true, false) => ShareAccess::ReadOnly,
            (true, true) => ShareAccess::WritableBeneath,
        };
        Ok(shares.attach(&share.name, root, access)?)
    }

    /// Takes a share away.
    pub(crate) fn detach_share(&self, name: &str) -> Result<(), CallError> {
        // Without the machine's lock: this waits for a request that is being done.
        let shares = self.with_vm(|booted| booted.share_handle())?;
        Ok(shares.detach(name)?)
    }
}

impl Booted {
    fn share_handle(&self) -> Result<FsHandle, CallError> {
        self.handles.shares.clone().ok_or(CallError::NoShares)
    }

    fn shares(&self) -> Vec<Share> {
        let shares = self.handles.shares.iter().flat_map(FsHandle::shares);
        shares
            .map(|share| Share {
                name: share.name,
                read_only: share.access != ShareAccess::Writable,
                writable_beneath: share.access == ShareAccess::WritableBeneath,
            })
            .collect()
    }

    fn nics(&self) -> Vec<NicStatus> {
        let nics = self.request.nics.iter().zip(&self.handles.nics);
        nics.map(|(nic, handle)| {
            let counters = handle.counters();
            NicStatus {
                mac: nic.mac.clone(),
                rx_frames: counters.rx_frames,
                rx_bytes: counters.rx_bytes,
                rx_dropped: counters.rx_dropped,
                tx_frames: counters.tx_frames,
                tx_bytes: counters.tx_bytes,
                tx_dropped: counters.tx_dropped,
            }
        })
        .collect()
    }

    /// All bays, with the devices that they are in the guest.
    fn bays(&self) -> impl Iterator<Item = (Bay, &'static str, &BayHandle)> {
        let Handles {
            read_only,
            writable,
            volumes,
            ..
        } = &self.handles;
        let fixed = [
            (Bay::ReadOnly, "vda", read_only),
            (Bay::Writable, "vdb", writable),
        ];
        let volumes = volumes.iter();
        let volumes = volumes.map(|(device, handle)| (Bay::Volumes, *device, handle));
        fixed.into_iter().chain(volumes)
    }

    /// The bay of volumes with the fewest, so that they do not wait for each other.
    fn emptiest(&self) -> Option<&(&'static str, BayHandle)> {
        let bays = self.handles.volumes.iter();
        bays.min_by_key(|(_, handle)| handle.extents().len())
    }

    fn bay_of(&self, name: &str) -> Option<BayHandle> {
        let mut bays = self.bays().map(|(_, _, handle)| handle);
        let has = |handle: &&BayHandle| handle.extents().iter().any(|e| e.name == name);
        bays.find(has).cloned()
    }

    fn extent(&self, name: &str) -> Result<Extent, CallError> {
        let mut extents = self.extents().into_iter();
        let found = extents.find(|extent| extent.name == name);
        found.ok_or_else(|| BayError::NoSuchExtent(name.to_owned()).into())
    }

    fn extents(&self) -> Vec<Extent> {
        let of = |(bay, device, handle): (Bay, &str, &BayHandle)| {
            let extents = handle.extents().into_iter();
            let extents = extents.map(|named| Extent {
                name: named.name,
                bay: bay.into(),
                offset: named.extent.offset,
                length: named.extent.length,
                device: device.to_owned(),
                read_only: named.read_only,
            });
            extents.collect::<Vec<_>>()
        };
        self.bays().flat_map(of).collect()
    }
}

/// What a request wants a disk to be held to.
fn limits(wanted: Option<&proto::IoLimits>) -> Result<IoLimits, CallError> {
    let rate = |limit: Option<&proto::RateLimit>| -> Result<Option<Rate>, CallError> {
        limit
            .map(|limit| {
                let number = |n| NonZeroU64::new(n).ok_or(CallError::RateLimit);
                Ok(Rate {
                    per_second: number(limit.per_second)?,
                    burst: number(limit.burst)?,
                })
            })
            .transpose()
    };
    let Some(wanted) = wanted else {
        return Ok(IoLimits::default());
    };
    Ok(IoLimits {
        bytes: rate(wanted.bytes.as_ref())?,
        operations: rate(wanted.operations.as_ref())?,
    })
}

/// Finishes the kernel log and adds the panic that it tells of to how the guest
/// ended: a guest that panicked resets, which is all that an engine sees.
fn explain(exit: VmExit, log: &Mutex<KernelLog>) -> VmExit {
    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
    log.finish();
    match (exit.reason(), log.panic()) {
        (Reason::GuestShutdown, Some(panic)) => VmExit {
            reason: Reason::GuestPanic.into(),
            message: panic.to_owned(),
        },
        (Reason::GuestPanic, Some(panic)) if exit.message.is_empty() => VmExit {
            message: panic.to_owned(),
            ..exit
        },
        _ => exit,
    }
}

fn engine_error(error: anyhow::Error) -> CallError {
    CallError::Engine(format!("{error:#}"))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn shutdown() -> VmExit {
        VmExit {
            reason: Reason::GuestShutdown.into(),
            message: "the guest shut down".into(),
        }
    }

    #[test]
    fn first_cause_of_the_end_counts() {
        let slot = ExitSlot::default();
        assert_eq!(slot.wait(Duration::ZERO), None);
        slot.set(shutdown());
        slot.set(VmExit {
            reason: Reason::Killed.into(),
            message: "later".into(),
        });
        assert_eq!(slot.wait(Duration::from_secs(60)), Some(shutdown()));
    }

    #[test]
    fn reset_after_a_panic_is_a_panic() {
        let file = tempfile::tempfile().unwrap();
        let log = Mutex::new(KernelLog::new(file, 0).unwrap());
        assert_eq!(explain(shutdown(), &log), shutdown());
        log.lock()
            .unwrap()
            .write_all(b"[ 1.0] Kernel panic - not syncing: no init\n")
            .unwrap();
        let exit = explain(shutdown(), &log);
        assert_eq!(exit.reason(), Reason::GuestPanic);
        assert_eq!(exit.message, "Kernel panic - not syncing: no init");
    }

    #[test]
    fn calls_on_an_idle_vm_say_so() {
        let lifecycle = Lifecycle::new(Path::new("/nonexistent"), Instant::now());
        for error in [
            lifecycle.pause().unwrap_err(),
            lifecycle.detach_disk("d").unwrap_err(),
        ] {
            assert_eq!(error.to_string(), "the VM is not booted");
        }
        assert_eq!(lifecycle.state().state(), VmState::Idle);
        lifecycle.shutdown();
        assert_eq!(lifecycle.state().state(), VmState::Exited);
        assert!(matches!(lifecycle.resume(), Err(CallError::Exited(_))));
    }
}
