//! Puts a VM together, piece by piece, and starts it.

use kvm_ioctls::{IoEventAddress, Kvm, VmFd};
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use virtio_devices::{Console, VirtioDevice};
use vm_memory::GuestMemoryMmap;
use vm_spec::proto::VmExit;

use super::bus::{Bus, MAX_DEVICES, virtio_gsi, virtio_window};
use super::exit::Cause;
use super::gate::Gate;
use super::panic_watch::{LastWords, PanicWatch};
use super::probe::{KvmProbe, probe};
use super::softkvm::{SoftError, SoftKvm, SoftVcpu};
use super::vcpu::Vcpu;
use super::virtio_mmio::{QUEUE_NOTIFY, Transport, start};
use super::{KvmVm, boot_params, cmdline, cpuid, kick, loader, memory, mptable, regs};
use crate::engine::Machine;

/// Three pages for Intel's real mode and one for its page table, in the hole.
const TSS: usize = 0xfffb_d000;
const IDENTITY_MAP: u64 = 0xfffb_c000;
/// Memory slot of softkvm's own page, and the first one of RAM.
const SOFT_SLOT: u32 = 0;
const RAM_SLOT: u32 = 1;

/// Why a VM could not be put together.
#[derive(Debug, thiserror::Error)]
pub(super) enum BuildError {
    /// The probe's sentence says why.
    #[error("{0}")]
    Unusable(String),
    /// A KVM call failed.
    #[error("KVM refuses to {what}")]
    Kvm {
        /// What was tried.
        what: &'static str,
        /// What KVM said.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// Too many devices.
    #[error("{0} devices are more than the {MAX_DEVICES} that a VM can have")]
    TooManyDevices(usize),
    /// More vCPUs than KVM has.
    #[error("{wanted} vCPUs are more than KVM's {max} on this host")]
    TooManyVcpus {
        /// What was asked for.
        wanted: u32,
        /// What can be had.
        max: usize,
    },
    /// A thread or descriptor could not be had.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] memory::MemoryError),
    /// Kernel or initramfs.
    #[error(transparent)]
    Load(#[from] loader::LoadError),
    /// Boot parameters.
    #[error(transparent)]
    BootParams(#[from] boot_params::BootParamsError),
    /// The MP table.
    #[error("cannot write the MP table into guest memory")]
    MpTable(#[source] vm_memory::GuestMemoryError),
    /// Registers.
    #[error(transparent)]
    Regs(#[from] regs::RegsError),
    /// CPUID.
    #[error(transparent)]
    CpuId(#[from] cpuid::CpuIdError),
    /// What a KVM without hardware virtualization needs.
    #[error(transparent)]
    Soft(#[from] SoftError),
}

fn kvm(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> BuildError {
    move |source| BuildError::Kvm { what, source }
}

fn system(what: &'static str) -> impl Fn(io::Error) -> BuildError {
    move |source| BuildError::System { what, source }
}

/// A VM whose guest has not run yet. Field order is drop order: the memory
/// stays mapped until vCPUs and VM are gone.
pub(super) struct Assembled {
    vcpus: Vec<Vcpu>,
    transports: Vec<Arc<Transport>>,
    console: Arc<Transport>,
    last_words: LastWords,
    vm: VmFd,
    soft: Option<Arc<SoftKvm>>,
    memory: GuestMemoryMmap,
    on_exit: Box<dyn FnOnce(VmExit) + Send>,
}

impl Assembled {
    /// Makes everything but threads.
    pub(super) fn build(machine: Machine) -> Result<Self, BuildError> {
        let found = probe();
        if !found.usable {
            return Err(BuildError::Unusable(found.detail));
        }
        let kvm_fd = Kvm::new().map_err(kvm("open"))?;
        check_vcpus(&kvm_fd, machine.vcpus)?;
        let memory = memory::allocate(machine.memory_mib)?;
        let vm = create_vm(&kvm_fd)?;
        let soft = soft_kvm(&found, &vm, &memory)?;
        memory::register(&vm, &memory, RAM_SLOT)?;

        let (watch, last_words) = PanicWatch::new(machine.kernel_log.clone());
        let console: Box<dyn VirtioDevice> = Box::new(Console::new(Arc::new(Mutex::new(watch))));
        let mut devices = machine.devices;
        devices.push(console);
        let transports = connect_devices(&vm, &memory, devices)?;
        // `devices` was not empty: the console is its last.
        let console = transports[transports.len() - 1].clone();
        let bus = Arc::new(Bus::new(transports.clone()));

        let additions = soft.as_ref().map_or("", |soft| soft.cmdline());
        let line = cmdline::build(transports.len(), additions, &machine.extra_cmdline);
        let (mut kernel, mut initramfs) = (machine.kernel, machine.initramfs);
        let loaded = loader::load_kernel(&memory, &mut kernel)?;
        let placed = loader::load_initramfs(&memory, &mut initramfs, loaded)?;
        boot_params::write(&memory, &line, placed)?;
        regs::write_tables(&memory)?;
        let count = u8::try_from(machine.vcpus).unwrap_or(u8::MAX);
        mptable::write(&memory, count).map_err(BuildError::MpTable)?;

        let mut vcpus = Vec::new();
        for id in 0..machine.vcpus {
            vcpus.push(create_vcpu(
                &kvm_fd,
                &vm,
                soft.as_ref(),
                &bus,
                id,
                machine.vcpus,
            )?);
        }
        regs::set_boot_registers(&vcpus[0].fd, loaded.entry)?;
        Ok(Self {
            vcpus,
            transports,
            console,
            last_words,
            vm,
            soft,
            memory,
            on_exit: machine.on_exit,
        })
    }

    /// Starts all threads and lets the vCPUs run.
    pub(super) fn start(self) -> Result<KvmVm, BuildError> {
        kick::install().map_err(system("install the signal handler of the vCPUs"))?;
        let gate = Arc::new(Gate::new(self.vcpus.len()));
        let (ended, causes) = channel();
        let mut started = Started {
            gate: gate.clone(),
            vcpus: Vec::new(),
            transports: self.transports,
            devices: Vec::new(),
        };
        for transport in &started.transports {
            let thread = start(transport.clone()).map_err(system("start a device's thread"))?;
            started.devices.push(thread);
        }
        for vcpu in self.vcpus {
            let thread = start_vcpu(vcpu, &gate, &ended)?;
            started.vcpus.push(thread);
        }
        let guest = Guest {
            started,
            console: self.console,
            last_words: self.last_words,
            vm: self.vm,
            soft: self.soft,
            memory: self.memory,
            on_exit: self.on_exit,
        };
        let supervisor = std::thread::Builder::new()
            .name("supervisor".into())
            .spawn(move || guest.supervise(&causes))
            .map_err(system("start the supervisor's thread"))?;
        gate.open();
        Ok(KvmVm {
            gate,
            ended,
            supervisor: Some(supervisor),
        })
    }
}

/// Threads that run; dropping it ends and joins them.
struct Started {
    gate: Arc<Gate>,
    vcpus: Vec<JoinHandle<()>>,
    transports: Vec<Arc<Transport>>,
    devices: Vec<JoinHandle<()>>,
}

impl Drop for Started {
    fn drop(&mut self) {
        self.gate.end();
        for thread in self.vcpus.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a vCPU's thread panicked");
            }
        }
        self.transports
            .iter()
            .for_each(|transport| transport.stop());
        for thread in self.devices.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a device's thread panicked");
            }
        }
    }
}

/// What the supervisor owns while the guest runs.
struct Guest {
    started: Started,
    console: Arc<Transport>,
    last_words: LastWords,
    vm: VmFd,
    soft: Option<Arc<SoftKvm>>,
    memory: GuestMemoryMmap,
    on_exit: Box<dyn FnOnce(VmExit) + Send>,
}

impl Guest {
    fn supervise(self, causes: &Receiver<Cause>) {
        // Every sender is gone only if all vCPUs ended without a word.
        let cause = causes
            .recv()
            .unwrap_or_else(|_| Cause::Failure("every vCPU's thread ended".into()));
        let spoke = self.console.was_active();
        drop(self.started);
        drop(self.console);
        drop(self.vm);
        drop(self.soft);
        drop(self.memory);
        let words = self
            .last_words
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        (self.on_exit)(cause.into_exit(words, spoke));
    }
}

fn check_vcpus(kvm: &Kvm, wanted: u32) -> Result<(), BuildError> {
    let max = kvm.get_max_vcpus();
    if wanted as usize > max {
        return Err(BuildError::TooManyVcpus { wanted, max });
    }
    Ok(())
}

fn create_vm(kvm_fd: &Kvm) -> Result<VmFd, BuildError> {
    let vm = kvm_fd.create_vm().map_err(kvm("create a VM"))?;
    vm.set_identity_map_address(IDENTITY_MAP)
        .map_err(kvm("place the identity map"))?;
    vm.set_tss_address(TSS).map_err(kvm("place the TSS"))?;
    vm.create_irq_chip()
        .map_err(kvm("create the interrupt controllers"))?;
    Ok(vm)
}

/// Decides, once, whether this VM needs softkvm.
fn soft_kvm(
    found: &KvmProbe,
    vm: &VmFd,
    memory: &GuestMemoryMmap,
) -> Result<Option<Arc<SoftKvm>>, BuildError> {
    if found.native {
        return Ok(None);
    }
    tracing::warn!("{}: expect boots of many seconds", found.detail);
    Ok(Some(Arc::new(SoftKvm::new(vm, memory, SOFT_SLOT)?)))
}

fn connect_devices(
    vm: &VmFd,
    memory: &GuestMemoryMmap,
    devices: Vec<Box<dyn VirtioDevice>>,
) -> Result<Vec<Arc<Transport>>, BuildError> {
    if devices.len() > MAX_DEVICES {
        return Err(BuildError::TooManyDevices(devices.len()));
    }
    let mut transports = Vec::new();
    for (index, device) in devices.into_iter().enumerate() {
        let transport = Transport::new(device, memory.clone())
            .map_err(system("make the event descriptors of a device"))?;
        vm.register_irqfd(transport.interrupt_line(), virtio_gsi(index))
            .map_err(kvm("connect a device's interrupt"))?;
        let address = IoEventAddress::Mmio(virtio_window(index) + QUEUE_NOTIFY);
        for (queue, bell) in (0u32..).zip(transport.bells()) {
            vm.register_ioevent(bell, &address, queue)
                .map_err(kvm("connect a queue's bell"))?;
        }
        transports.push(Arc::new(transport));
    }
    Ok(transports)
}

fn create_vcpu(
    kvm_fd: &Kvm,
    vm: &VmFd,
    soft: Option<&Arc<SoftKvm>>,
    bus: &Arc<Bus>,
    id: u32,
    vcpus: u32,
) -> Result<Vcpu, BuildError> {
    let mut fd = vm.create_vcpu(id.into()).map_err(kvm("create a vCPU"))?;
    let supported = kvm_fd
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(kvm("list its CPUID"))?;
    let mut cpuid = cpuid::for_vcpu(&supported, id, vcpus)?;
    if let Some(soft) = soft {
        soft.mask_cpuid(&mut cpuid);
    }
    fd.set_cpuid2(&cpuid).map_err(kvm("set a vCPU's CPUID"))?;
    regs::set_common(&fd)?;
    let soft = soft.map(|soft| SoftVcpu::new(soft, &mut fd)).transpose()?;
    Ok(Vcpu {
        fd,
        id,
        bus: bus.clone(),
        soft,
    })
}

fn start_vcpu(
    vcpu: Vcpu,
    gate: &Arc<Gate>,
    ended: &Sender<Cause>,
) -> Result<JoinHandle<()>, BuildError> {
    let (gate, ended) = (gate.clone(), ended.clone());
    std::thread::Builder::new()
        .name(format!("vcpu{}", vcpu.id))
        .spawn(move || vcpu.run(&gate, &ended))
        .map_err(system("start a vCPU's thread"))
}
