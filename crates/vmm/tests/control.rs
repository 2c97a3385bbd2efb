//! The control socket against callers that are wrong, hostile or gone.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;
use support::{Vmm, request};
use vm_launcher::{ClientError, Code, VmmProcess, exit_record};
use vm_spec::proto::vm_exit::Reason;
use vm_spec::proto::{Bay, Engine, PauseRequest, Request, Response, VmState, request::Call};
use wire::FdStream;
use wire::proto::Hello;

fn raw(vmm: &Vmm) -> UnixStream {
    let stream = UnixStream::connect(vmm.dir.path().join("vmm.sock")).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    stream
}

/// A connection after the handshake.
fn greeted(vmm: &Vmm) -> UnixStream {
    let mut stream = raw(vmm);
    wire::handshake(&mut stream, "test").unwrap();
    stream
}

/// Whether the process closes the connection, with or without last words.
fn is_closed(mut stream: UnixStream) -> bool {
    match stream.read_to_end(&mut Vec::new()) {
        Ok(_) => true,
        // It did not read all that was sent.
        Err(e) => e.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

/// An ELF header that passes the first look, and an archive's magic.
fn look_alikes() -> (File, File) {
    let mut header = [0u8; 64];
    header[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    header[18] = 62;
    let mut kernel = tempfile::tempfile().unwrap();
    kernel.write_all(&header).unwrap();
    let mut initramfs = tempfile::tempfile().unwrap();
    initramfs.write_all(b"070701").unwrap();
    (kernel, initramfs)
}

#[test]
fn hostile_bytes_end_their_connection_only() {
    let mut vmm = Vmm::start();
    let mut garbage = raw(&vmm);
    garbage.write_all(&[0xff; 64]).unwrap();
    assert!(is_closed(garbage));
    let mut giant = greeted(&vmm);
    giant.write_all(&u32::MAX.to_le_bytes()).unwrap();
    let answer: Response = wire::read_frame(&mut giant).unwrap().unwrap();
    assert!(format!("{answer:?}").contains("at most"));
    assert!(is_closed(giant));
    let mut malformed = greeted(&vmm);
    malformed.write_all(b"\x03\0\0\0\xff\xff\xff").unwrap();
    assert!(is_closed(malformed));
    let mut other_version = raw(&vmm);
    let hello = Hello {
        major: wire::MAJOR + 1,
        ..Hello::default()
    };
    wire::write_frame(&mut other_version, &hello).unwrap();
    assert!(is_closed(other_version));
    drop(greeted(&vmm));
    assert_eq!(vmm.client.state().unwrap().state(), VmState::Idle);
}

#[test]
fn request_without_a_known_call_is_answered() {
    let vmm = Vmm::start();
    let mut stream = greeted(&vmm);
    wire::write_frame(&mut stream, &Request { call: None }).unwrap();
    let answer: Response = wire::read_frame(&mut stream).unwrap().unwrap();
    assert!(format!("{answer:?}").contains("does not know the call"));
}

#[test]
fn boot_of_what_no_vm_can_have_is_refused_by_field() {
    let mut vmm = Vmm::start();
    let (kernel, initramfs) = look_alikes();
    let sound = request(Engine::Qemu, 1);
    for (request, field) in [
        (request(Engine::Qemu, 0), "vcpus"),
        (request(Engine::Qemu, 65), "vcpus"),
        (request(Engine::Unspecified, 1), "engine"),
        (
            vm_spec::proto::BootRequest {
                memory_mib: 1 << 40,
                ..sound.clone()
            },
            "memory_mib",
        ),
        (
            vm_spec::proto::BootRequest {
                extra_cmdline: "quiet\ninit=/bin/sh".into(),
                ..sound.clone()
            },
            "extra_cmdline",
        ),
    ] {
        let Err(ClientError::Call(error)) = vmm.boot_with(&request, &kernel, &initramfs) else {
            panic!("{field} was not refused");
        };
        assert_eq!(
            (error.code, error.field.as_str()),
            (Code::InvalidArgument, field)
        );
    }
    let empty = tempfile::tempfile().unwrap();
    for (kernel, initramfs, field) in [
        (&empty, &initramfs, "kernel"),
        (&initramfs, &initramfs, "kernel"),
        (&kernel, &empty, "initramfs"),
        (&kernel, &kernel, "initramfs"),
    ] {
        let Err(ClientError::Call(error)) = vmm.boot_with(&sound, kernel, initramfs) else {
            panic!("a wrong {field} was not refused");
        };
        assert_eq!(error.field, field);
        assert!(error.remedy.contains("xtask"), "{error}");
    }
    assert_eq!(vmm.client.state().unwrap().state(), VmState::Idle);
}

#[test]
fn missing_and_surplus_descriptors_are_refused() {
    let vmm = Vmm::start();
    let mut stream = FdStream::new(greeted(&vmm));
    let (kernel, initramfs) = look_alikes();
    let boot = Request {
        call: Some(Call::Boot(request(Engine::Qemu, 1))),
    };
    let pause = Request {
        call: Some(Call::Pause(PauseRequest {})),
    };
    let two = [kernel.as_fd(), initramfs.as_fd()];
    for (request, fds) in [(&boot, &two[..]), (&boot, &[]), (&pause, &two[..1])] {
        stream.send(request, fds).unwrap();
        let (answer, _) = stream.recv::<Response>().unwrap().unwrap();
        assert!(
            format!("{answer:?}").contains("descriptors are needed"),
            "{answer:?}"
        );
    }
}

#[test]
fn calls_before_boot_say_so() {
    let mut vmm = Vmm::start();
    let file = tempfile::tempfile().unwrap();
    for error in [
        vmm.client.pause().unwrap_err(),
        vmm.client.resume().unwrap_err(),
        vmm.client
            .attach_disk("d", Bay::Writable, &file)
            .unwrap_err(),
        vmm.client.detach_disk("d").unwrap_err(),
    ] {
        assert_eq!(error.code(), Some(Code::FailedPrecondition), "{error}");
    }
    let error = vmm.client.drain_log("c", Duration::ZERO).unwrap_err();
    assert_eq!(error.code(), Some(Code::NotFound));
    let error = vmm.client.attach_log("c", false, &file).unwrap_err();
    assert_eq!(error.code(), Some(Code::Unavailable));
    let read_only = File::open("/dev/null").unwrap();
    let error = vmm.client.attach_log("c", false, &read_only).unwrap_err();
    assert_eq!(error.code(), Some(Code::InvalidArgument));
}

#[test]
fn shutdown_of_an_idle_process_ends_it() {
    let mut vmm = Vmm::start();
    vmm.client.shutdown().unwrap();
    vmm.process.wait_exit();
    assert_eq!(
        exit_record(vmm.dir.path()).unwrap().reason(),
        Reason::Killed
    );
    assert_eq!(vmm.left_over(), ["vm-exit.json", "vmm.log"]);
}

#[test]
fn socket_is_its_user_s_alone_and_a_second_process_is_refused() {
    let vmm = Vmm::start();
    let metadata = std::fs::metadata(vmm.dir.path().join("vmm.sock")).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    let output = Command::new(env!("CARGO_BIN_EXE_spherule-vmm"))
        .arg("--dir")
        .arg(vmm.dir.path())
        .output()
        .unwrap();
    assert!(!output.status.success());
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(words.contains("another spherule-vmm runs"), "{words}");
}

#[test]
fn process_is_found_again_by_its_number_and_start() {
    let vmm = Vmm::start();
    let (pid, start) = (vmm.process.pid(), vmm.process.start_time());
    let adopted = VmmProcess::adopt(vmm.dir.path(), pid, start).unwrap();
    assert_eq!(adopted.connect().unwrap().state().unwrap().vmm_pid, pid);
    adopted.kill();
    vmm.process.wait_exit();
    assert!(adopted.has_ended());
    assert!(VmmProcess::adopt(vmm.dir.path(), pid, start).is_err());
    // It left its socket; the next process takes the place.
    let log = File::create(vmm.dir.path().join("vmm.log")).unwrap();
    let next = support::launcher()
        .spawn(vmm.dir.path(), log, None)
        .unwrap();
    next.connect().unwrap().shutdown().unwrap();
    next.wait_exit();
}

#[test]
fn process_that_dies_at_once_leaves_its_last_words() {
    let dir = tempfile::tempdir().unwrap();
    // Something that is no socket lies in the way.
    std::fs::create_dir(dir.path().join("vmm.sock")).unwrap();
    let log = File::create(dir.path().join("vmm.log")).unwrap();
    let process = support::launcher().spawn(dir.path(), log, None).unwrap();
    let Err(ClientError::Died { log }) = process.connect() else {
        panic!("it lives");
    };
    assert!(log.contains("control socket"), "{log}");
}
