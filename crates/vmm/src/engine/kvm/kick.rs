//! Making a vCPU thread come out of KVM_RUN, whenever it is about to enter.
//!
//! A signal's handler sets `immediate_exit` in the thread's own kvm_run page:
//! a thread that has not entered yet returns at once, one inside is interrupted.
#![expect(unsafe_code)]
// UNSAFETY: signal handler and tgkill have no safe interface.

use kvm_ioctls::VcpuFd;
use std::cell::Cell;
use std::io;
use std::ptr::{self, null_mut};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

thread_local! {
    /// `immediate_exit` of the vCPU that this thread runs. Const-initialised and
    /// without destructor, so a signal handler may touch it.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(null_mut()) };
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: set by `Kickable::enter` to a byte of the kvm_run page of a
        // VcpuFd that outlives the `Entered` which clears the pointer.
        unsafe { ptr::write_volatile(flag, 1) };
    }
}

/// Installs the signal handler, once per process.
pub(super) fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    INSTALLED
        .get_or_init(|| register_signal_handler(SIGRTMIN(), on_kick).map_err(|e| e.errno()))
        .map_err(io::Error::from_raw_os_error)
}

/// A thread that can be kicked; 0 while there is none.
#[derive(Default)]
pub(super) struct Kickable {
    tid: AtomicI32,
}

impl Kickable {
    /// The calling thread runs `vcpu` from now on; it is clean of kicks.
    ///
    /// The guard must be dropped before `vcpu` is.
    pub(super) fn enter(&self, vcpu: &mut VcpuFd) -> Entered<'_> {
        vcpu.set_kvm_immediate_exit(0);
        IMMEDIATE_EXIT.set(&raw mut vcpu.get_kvm_run().immediate_exit);
        // SAFETY: gettid has no preconditions.
        let tid = unsafe { libc::gettid() };
        self.tid.store(tid, Ordering::SeqCst);
        Entered(self)
    }

    /// Makes the thread come out of KVM_RUN.
    pub(super) fn kick(&self) {
        let tid = self.tid.load(Ordering::SeqCst);
        if tid == 0 {
            return;
        }
        let pid = std::process::id();
        // SAFETY: sends a signal whose handler is installed; a thread id that
        // is stale by now belongs to this process, where the handler does
        // nothing on other threads, or to none.
        unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, SIGRTMIN()) };
    }
}

/// While it lives, the thread that made it can be kicked.
pub(super) struct Entered<'a>(&'a Kickable);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.tid.store(0, Ordering::SeqCst);
        IMMEDIATE_EXIT.set(null_mut());
    }
}
