//! Real guests under the real process: boot, disks, vsock, pause, every way to
//! end. On the qemu engine; on kvm where KVM is native, and one guest of it
//! everywhere.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::io::{Read, Write};
use support::{Vmm, checksum, patterned, qemu_or_skip, request, runs, skip};
use vm_launcher::{ClientError, Code, exit_record};
use vm_spec::proto::vm_exit::Reason;
use vm_spec::proto::{Bay, Engine, VmState};

/// Everything that one running guest can show.
fn exercise(engine: Engine, echo_len: usize) {
    let mut vmm = Vmm::booted(engine, 2);
    let state = vmm.client.state().unwrap();
    assert_eq!(state.state(), VmState::Running);
    assert_eq!(state.engine(), engine);
    assert_eq!((state.vcpus, state.memory_mib), (2, 192));
    assert_eq!(state.vmm_pid, vmm.process.pid());
    let mut guest = vmm.guest();
    assert_eq!(guest.ask("cpus"), "2");
    let memory: u64 = guest.ask("memory").parse().unwrap();
    assert!((120..192).contains(&memory), "{memory} MiB");
    assert_ne!(guest.ask("random"), guest.ask("random"));
    read_only_bay(&mut vmm, &mut guest);
    writable_bay(&mut vmm, &mut guest);
    echo(&mut guest, echo_len);
    pause_and_resume(&mut vmm, &mut guest);
    guest.ask("print hello-from-the-guest");
    guest.ask("reset");
    vmm.process.wait_exit();
    let exit = exit_record(vmm.dir.path()).unwrap();
    assert_eq!(exit.reason(), Reason::GuestShutdown, "{}", exit.message);
    assert!(vmm.kernel_log().contains("hello-from-the-guest"));
    assert_eq!(vmm.left_over(), ["kernel.log", "vm-exit.json", "vmm.log"]);
}

fn read_only_bay(vmm: &mut Vmm, guest: &mut support::Guest) {
    let (file, bytes) = patterned(3 << 20);
    let extent = vmm
        .client
        .attach_disk("image", Bay::ReadOnly, &file)
        .unwrap();
    assert_eq!(extent.length, 3 << 20);
    let expected = checksum(&bytes).to_string();
    let sum = format!("sum vda {} {}", extent.offset, extent.length);
    assert_eq!(guest.ask(&sum), expected);
    let (other, other_bytes) = patterned(5000);
    let second = vmm
        .client
        .attach_disk("odd", Bay::ReadOnly, &other)
        .unwrap();
    assert_eq!(second.length, 8192);
    let mut padded = other_bytes;
    padded.resize(8192, 0);
    let sum = format!("sum vda {} 8192", second.offset);
    assert_eq!(guest.ask(&sum), checksum(&padded).to_string());
    assert_eq!(guest.ask("read /sys/block/vda/ro"), "1");
    let taken = vmm.client.attach_disk("image", Bay::Writable, &file);
    assert_eq!(taken.unwrap_err().code(), Some(Code::AlreadyExists));
    vmm.client.detach_disk("odd").unwrap();
    let gone = vmm.client.detach_disk("odd");
    assert_eq!(gone.unwrap_err().code(), Some(Code::NotFound));
    let names: Vec<String> = vmm
        .client
        .state()
        .unwrap()
        .extents
        .into_iter()
        .map(|e| e.name)
        .collect();
    assert_eq!(names, ["image"]);
}

fn writable_bay(vmm: &mut Vmm, guest: &mut support::Guest) {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    let extent = vmm
        .client
        .attach_disk("scratch", Bay::Writable, &file)
        .unwrap();
    assert_eq!(guest.ask("read /sys/block/vdb/ro"), "0");
    let fill = format!("fill vdb {} 65536 171", extent.offset + 4096);
    assert_eq!(guest.ask(&fill), "65536");
    let mut bytes = vec![0; 4096 + 65536 + 4096];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).unwrap();
    let mut expected = vec![0; bytes.len()];
    expected[4096..4096 + 65536].fill(171);
    assert!(bytes == expected, "the file has not what the guest wrote");
}

/// Sends bytes to the guest, which sends them back.
fn echo(guest: &mut support::Guest, len: usize) {
    let (_, bytes) = patterned(len);
    let mut writer = guest.stream.get_ref().try_clone().unwrap();
    let sent = bytes.clone();
    let sender = std::thread::spawn(move || {
        writer
            .write_all(format!("echo {}\n", sent.len()).as_bytes())
            .unwrap();
        writer.write_all(&sent).unwrap();
    });
    let mut back = vec![0; len];
    guest.stream.read_exact(&mut back).unwrap();
    sender.join().unwrap();
    assert!(back == bytes, "other bytes came back");
}

fn pause_and_resume(vmm: &mut Vmm, guest: &mut support::Guest) {
    vmm.client.pause().unwrap();
    vmm.client.pause().unwrap();
    assert_eq!(vmm.client.state().unwrap().state(), VmState::Paused);
    let mut stream = guest.stream.get_ref().try_clone().unwrap();
    stream.write_all(b"cpus\n").unwrap();
    // Nothing comes from vCPUs that stand still.
    stream
        .set_read_timeout(Some(std::time::Duration::from_millis(300)))
        .unwrap();
    assert!(stream.read(&mut [0]).is_err());
    stream.set_read_timeout(Some(support::HANG)).unwrap();
    vmm.client.resume().unwrap();
    vmm.client.resume().unwrap();
    assert_eq!(vmm.client.state().unwrap().state(), VmState::Running);
    // The connection, and what was on its way, survived.
    let mut answer = [0; 2];
    guest.stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"2\n");
    // So did the disks.
    assert_eq!(guest.ask("read /sys/block/vda/ro"), "1");
    let extent = vmm.client.state().unwrap().extents.remove(0);
    let sum = guest.ask(&format!("sum vda {} 4096", extent.offset));
    assert!(sum.parse::<u64>().is_ok(), "{sum}");
    echo(guest, 100_000);
}

#[test]
fn guest_on_qemu_has_all_its_devices() {
    if qemu_or_skip("guest_on_qemu_has_all_its_devices") {
        exercise(Engine::Qemu, 10 << 20);
    }
}

#[test]
fn guest_on_kvm_has_all_its_devices() {
    let name = "guest_on_kvm_has_all_its_devices";
    let probe = support::launcher().probe().unwrap();
    if !probe.kvm.usable {
        skip(name, &probe.kvm.detail);
    } else if support::kernel().is_none() {
        skip(name, "no guest kernel; run cargo xtask setup");
    } else {
        exercise(
            Engine::Kvm,
            if probe.kvm.native { 10 << 20 } else { 1 << 20 },
        );
    }
}

#[test]
fn panic_of_the_guest_is_told_by_its_line() {
    if !qemu_or_skip("panic_of_the_guest_is_told_by_its_line") {
        return;
    }
    let vmm = Vmm::booted(Engine::Qemu, 1);
    vmm.guest().ask("exit");
    vmm.process.wait_exit();
    let exit = exit_record(vmm.dir.path()).unwrap();
    assert_eq!(exit.reason(), Reason::GuestPanic, "{}", exit.message);
    assert!(
        exit.message.contains("Attempted to kill init"),
        "{}",
        exit.message
    );
}

#[test]
fn shutdown_ends_guest_process_and_qemu() {
    if !qemu_or_skip("shutdown_ends_guest_process_and_qemu") {
        return;
    }
    let mut vmm = Vmm::booted(Engine::Qemu, 1);
    let qemu = vmm.client.state().unwrap().engine_pid;
    assert!(runs(qemu));
    let mut other = vmm.process.connect().unwrap();
    vmm.client.shutdown().unwrap();
    vmm.process.wait_exit();
    assert!(!runs(qemu));
    let exit = exit_record(vmm.dir.path()).unwrap();
    assert_eq!(exit.reason(), Reason::Killed);
    // A client that slept through it learns the cause.
    assert!(matches!(other.state(), Err(ClientError::Ended(e)) if e == exit));
    assert!(matches!(vmm.process.connect(), Err(ClientError::Ended(_))));
    assert_eq!(vmm.left_over(), ["kernel.log", "vm-exit.json", "vmm.log"]);
}

#[test]
fn termination_by_a_signal_is_orderly_and_recorded() {
    if !qemu_or_skip("termination_by_a_signal_is_orderly_and_recorded") {
        return;
    }
    let mut vmm = Vmm::booted(Engine::Qemu, 1);
    let qemu = vmm.client.state().unwrap().engine_pid;
    let pid = rustix::process::Pid::from_raw(i32::try_from(vmm.process.pid()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    vmm.process.wait_exit();
    assert!(!runs(qemu));
    let exit = exit_record(vmm.dir.path()).unwrap();
    assert_eq!(exit.reason(), Reason::Killed);
    assert_eq!(exit.message, "it got the signal SIGTERM");
    assert_eq!(vmm.left_over(), ["kernel.log", "vm-exit.json", "vmm.log"]);
}

#[test]
fn killed_process_takes_qemu_with_it() {
    if !qemu_or_skip("killed_process_takes_qemu_with_it") {
        return;
    }
    let mut vmm = Vmm::booted(Engine::Qemu, 1);
    let qemu = vmm.client.state().unwrap().engine_pid;
    vmm.process.kill();
    vmm.process.wait_exit();
    // The kernel kills it as part of the end of its parent; it is reaped by
    // whoever adopted it.
    while runs(qemu) {
        std::thread::yield_now();
    }
    assert_eq!(exit_record(vmm.dir.path()), None);
}

#[test]
fn killed_qemu_is_an_engine_failure() {
    if !qemu_or_skip("killed_qemu_is_an_engine_failure") {
        return;
    }
    let mut vmm = Vmm::booted(Engine::Qemu, 1);
    let qemu = vmm.client.state().unwrap().engine_pid;
    let pid = rustix::process::Pid::from_raw(i32::try_from(qemu).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    vmm.process.wait_exit();
    let exit = exit_record(vmm.dir.path()).unwrap();
    assert_eq!(exit.reason(), Reason::EngineFailure);
    assert!(exit.message.contains("signal 9"), "{}", exit.message);
}

#[test]
fn corrupt_kernel_behind_a_sound_header_is_refused_and_another_boot_works() {
    if !qemu_or_skip("corrupt_kernel_behind_a_sound_header_is_refused_and_another_boot_works") {
        return;
    }
    let mut vmm = Vmm::start();
    // An ELF header as it should be, then nothing.
    let mut kernel = tempfile::tempfile().unwrap();
    let mut header = [0u8; 64];
    header[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    header[18] = 62;
    kernel.write_all(&header).unwrap();
    let request = request(Engine::Qemu, 1);
    let error = vmm
        .boot_with(&request, &kernel, &support::initramfs())
        .unwrap_err();
    assert_eq!(error.code(), Some(Code::Internal), "{error}");
    assert!(error.to_string().contains("QEMU exited"), "{error}");
    assert_eq!(vmm.client.state().unwrap().state(), VmState::Idle);
    vmm.boot(&request).unwrap();
    assert_eq!(vmm.guest().ask("cpus"), "1");
    let again = vmm.boot(&request).unwrap_err();
    assert_eq!(again.code(), Some(Code::FailedPrecondition));
}
