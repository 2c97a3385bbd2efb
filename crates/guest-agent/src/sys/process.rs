//! Making processes and preparing them for exec.
#![expect(unsafe_code, reason = "clone3, sigaction and close_range")]
// UNSAFETY: no safe wrapper of clone3 into a cgroup exists; resetting signal
// dispositions and marking all descriptors are `unsafe` or absent in nix.

use nix::sched::CloneFlags;
use rustix::io::Errno;
use rustix::process::Pid;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Forks into new namespaces and, where given, a cgroup; the child keeps the
/// descriptors 0 to 2 and `keep`, runs `child` and ends with its result as exit
/// code. What it does not keep is closed in it at once: the other ends of containers' pipes must
/// not live on in a process that waits.
///
/// Preconditions: the calling process has one thread, so the child may allocate
/// and lock as it likes (the agent never starts a thread); `child` uses and
/// drops no descriptor but those of `keep` and those it opens.
pub(crate) fn fork_into(
    namespaces: CloneFlags,
    cgroup: Option<BorrowedFd<'_>>,
    keep: &[BorrowedFd<'_>],
    child: impl FnOnce() -> i32,
) -> Result<Pid, Errno> {
    let mut flags = u64::from(namespaces.bits().cast_unsigned());
    // SAFETY: all-zero bytes are a valid clone_args: plain integers.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
    if let Some(fd) = cgroup {
        flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(fd.as_raw_fd().cast_unsigned());
    }
    args.flags = flags;
    // SAFETY: `args` is a whole clone_args of the size passed. No memory is
    // shared with the child (no CLONE_VM), so it goes on with a copy of this
    // stack as after fork(2); the process has one thread (precondition).
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut args,
            size_of::<libc::clone_args>(),
        )
    };
    let pid = super::check(result)?;
    match i32::try_from(pid).ok().and_then(Pid::from_raw) {
        Some(pid) => Ok(pid),
        None => {
            close_others(keep);
            exit_now(child())
        }
    }
}

/// linux/sched.h
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Closes every descriptor from 3 on but those of `keep`.
fn close_others(keep: &[BorrowedFd<'_>]) {
    let mut keep: Vec<u32> = keep
        .iter()
        .map(|fd| fd.as_raw_fd().cast_unsigned())
        .collect();
    keep.sort_unstable();
    let mut first = 3;
    for fd in keep {
        if fd > first {
            // SAFETY: close_range takes three integers; the child uses and drops
            // none of these descriptors (precondition of fork_into).
            unsafe { libc::syscall(libc::SYS_close_range, first, fd - 1, 0u32) };
        }
        first = first.max(fd + 1);
    }
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0u32) };
}

/// Sends `signal` (1 to 64, real-time ones too).
pub(crate) fn send_signal(pid: Pid, signal: i32) -> Result<(), Errno> {
    // SAFETY: kill takes two integers.
    super::check(unsafe { libc::kill(pid.as_raw_nonzero().get(), signal) }.into()).map(drop)
}

/// Kills every process but this one and the kernel's.
pub(crate) fn kill_everything() {
    // SAFETY: kill takes two integers; PID 1 itself is never hit by -1.
    unsafe { libc::kill(-1, libc::SIGKILL) };
}

/// Every signal back to its default action, none blocked: what a program
/// expects to be started with.
pub(crate) fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL is no handler that could run; numbers that cannot be
        // set (SIGKILL, SIGSTOP, the C library's own) just fail.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
}

/// Ignores SIGCHLD: the kernel then reaps this process's children by itself.
pub(crate) fn reap_by_itself() {
    // SAFETY: SIG_IGN is no handler that could run.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// Marks every descriptor from 3 on to be closed by exec.
pub(crate) fn close_on_exec_from_three() -> Result<(), Errno> {
    // SAFETY: close_range takes three integers; with CLOEXEC it closes nothing now.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3u32,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    super::check(result).map(drop)
}

/// Closes every descriptor and waits for ever.
pub(crate) fn wait_without_descriptors() -> ! {
    // SAFETY: close_range takes three integers; nothing uses or drops a closed
    // descriptor afterwards, as this function never returns.
    unsafe { libc::syscall(libc::SYS_close_range, 0u32, u32::MAX, 0u32) };
    loop {
        nix::unistd::pause();
    }
}

/// Ends this process at once, without destructors.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes an integer and does not return.
    unsafe { libc::_exit(code) }
}
