//! Network devices of real guests, on TAPs in network namespaces of the tests' own.
#![allow(clippy::unwrap_used, reason = "tests")]
#![expect(unsafe_code, reason = "the tun driver is configured by ioctl")]
// UNSAFETY: libc::ioctl on /dev/net/tun; no crate in the tree offers these calls.

mod support;

use guest_api::proto as guest;
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use support::{Vmm, checksum, kernel, launcher, patterned, qemu_or_skip, request, skip, workspace};
use vm_spec::proto::{BootRequest, Engine, Nic};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

/// Runs `test` on a thread with a network namespace of its own.
fn in_namespace(name: &'static str, test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        // SAFETY: unshare takes a number; the thread is the test's own, and its
        // other namespaces stay as they are.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
            return skip(name, "no network namespace can be made");
        }
        test();
    });
    thread.join().unwrap();
}

/// The queues of a new TAP in the thread's namespace, which has the address
/// 10.77.0.1 there.
fn tap(queues: usize, mtu: u32) -> Vec<OwnedFd> {
    let taps = (0..queues)
        .map(|_| {
            let fd = rustix::fs::open(
                "/dev/net/tun",
                OFlags::RDWR | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .unwrap();
            // SAFETY: all zero is a valid ifreq.
            let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
            for (to, from) in request.ifr_name.iter_mut().zip(b"tap0") {
                *to = from.cast_signed();
            }
            let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
            if queues > 1 {
                flags |= libc::IFF_MULTI_QUEUE;
            }
            request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap();
            // SAFETY: TUNSETIFF reads and writes one ifreq, borrowed for the call.
            let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
            assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
            fd
        })
        .collect();
    ip("addr add 10.77.0.1/24 dev tap0");
    ip(&format!("link set tap0 mtu {mtu} up"));
    taps
}

fn ip(words: &str) {
    let output = Command::new("ip").args(words.split(' ')).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {words}: {errors}");
}

fn with_nic(engine: Engine, vcpus: u32, queue_pairs: u32, mtu: u32) -> BootRequest {
    BootRequest {
        nics: vec![Nic {
            mac: MAC.to_vec(),
            mtu,
            queue_pairs,
            anti_spoof: true,
        }],
        ..request(engine, vcpus)
    }
}

/// Sends `len` bytes over TCP, gets them back, and some datagrams.
fn exercise(engine: Engine, vcpus: u32, queue_pairs: u32, mtu: u32, len: usize) {
    let taps = tap(queue_pairs as usize, mtu);
    let mut vmm = Vmm::start();
    let fds: Vec<_> = taps.iter().map(AsFd::as_fd).collect();
    vmm.boot_on_network(&with_nic(engine, vcpus, queue_pairs, mtu), &fds)
        .unwrap();
    drop(taps);
    let mut guest = vmm.guest();
    let read = |guest: &mut support::Guest, file: &str| {
        guest.ask(&format!("read /sys/class/net/eth0/{file}"))
    };
    assert_eq!(read(&mut guest, "address"), "02:00:00:00:00:07");
    assert_eq!(read(&mut guest, "mtu"), mtu.to_string());
    assert_eq!(guest.ask("configure eth0 10.77.0.2 255.255.255.0"), "ok");

    let listener = TcpListener::bind("10.77.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (_, bytes) = patterned(len);
    let expected = checksum(&bytes);
    let sent = bytes.clone();
    let host = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(&sent).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        back
    });
    assert_eq!(
        guest.ask(&format!("exchange 10.77.0.1:{port}")),
        expected.to_string()
    );
    assert!(host.join().unwrap() == bytes, "what came back differs");
    echo_datagrams(&mut guest, mtu);
    vmm.client.pause().unwrap();
    vmm.client.resume().unwrap();
    echo_datagrams(&mut guest, mtu);

    let state = vmm.client.state().unwrap();
    let nic = &state.nics[0];
    assert_eq!(nic.mac, MAC);
    assert!(
        nic.rx_bytes > len as u64 && nic.tx_bytes > len as u64,
        "{nic:?}"
    );
    println!("{engine:?} mtu {mtu}: {nic:?}");
    guest.ask("reset");
    vmm.process.wait_exit();
    assert_eq!(vmm.left_over(), ["kernel.log", "vm-exit.json", "vmm.log"]);
}

fn echo_datagrams(guest: &mut support::Guest, mtu: u32) {
    let socket = UdpSocket::bind("10.77.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    // The largest that is one frame, and one in fragments.
    let lens = [1, mtu as usize - 28, 20_000];
    let echo = std::thread::spawn(move || {
        for _ in lens {
            let mut datagram = vec![0; 65_536];
            let (len, from) = socket.recv_from(&mut datagram).unwrap();
            socket.send_to(&datagram[..len], from).unwrap();
        }
    });
    for len in lens {
        let answer = guest.ask(&format!("datagram 10.77.0.1:{port} {len}"));
        assert_eq!(answer, len.to_string());
    }
    echo.join().unwrap();
}

#[test]
fn guest_exchanges_data_with_the_host() {
    let name = "guest_exchanges_data_with_the_host";
    if qemu_or_skip(name) {
        in_namespace(name, || exercise(Engine::Qemu, 1, 1, 1500, 10 << 20));
    }
}

#[test]
fn guest_exchanges_jumbo_frames_and_leaves_queues_alone() {
    let name = "guest_exchanges_jumbo_frames_and_leaves_queues_alone";
    if qemu_or_skip(name) {
        in_namespace(name, || exercise(Engine::Qemu, 2, 2, 9000, 10 << 20));
    }
}

#[test]
fn kvm_guest_exchanges_data_by_several_queues() {
    let name = "kvm_guest_exchanges_data_by_several_queues";
    let probe = launcher().probe().unwrap();
    if !probe.kvm.usable {
        return skip(name, &probe.kvm.detail);
    }
    if kernel().is_none() {
        return skip(name, "no guest kernel; run cargo xtask setup");
    }
    let len = if probe.kvm.native { 10 << 20 } else { 64 << 10 };
    in_namespace(name, move || exercise(Engine::Kvm, 2, 2, 1500, len));
}

/// The guest agent's answer to SetupSandbox with this interface.
fn set_up_sandbox(vmm: &Vmm, nic: guest::Nic) -> guest::SetupSandboxResponse {
    let mut stream = vmm.guest().stream.into_inner();
    wire::handshake(&mut stream, "test").unwrap();
    let request = guest::SetupSandboxRequest {
        sandbox_id: "pod".into(),
        hostname: "pod".into(),
        unix_time_ns: 1_700_000_000_000_000_000,
        entropy: vec![9; 32],
        nics: vec![nic],
        sysctls: [("net.ipv4.conf.eth7.forwarding".into(), "1".into())].into(),
        ..guest::SetupSandboxRequest::default()
    };
    let message = guest::ClientMessage {
        id: 1,
        call: Some(guest::client_message::Call::SetupSandbox(request)),
    };
    wire::write_frame(&mut stream, &message).unwrap();
    let answer: guest::ServerMessage = wire::read_frame(&mut stream).unwrap().unwrap();
    let Some(guest::server_message::Kind::Response(answer)) = answer.kind else {
        panic!("{answer:?}");
    };
    match answer.result {
        Some(guest::response::Result::SetupSandbox(answer)) => answer,
        other => panic!("{other:?}"),
    }
}

/// Three echoes over the namespace's TAP.
fn ping(arguments: &str) {
    let output = Command::new("busybox")
        .args(["ping", "-c", "3", "-i", "0.2", "-w", "60"])
        .args(arguments.split(' '))
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&output.stdout);
    assert!(words.contains(" 0% packet loss"), "{arguments}: {words}");
}

#[test]
fn agent_configures_an_interface_that_answers() {
    let name = "agent_configures_an_interface_that_answers";
    let initramfs = workspace().join("target/guest/initramfs.cpio");
    if !initramfs.exists() {
        return skip(name, "no guest agent; run cargo xtask guest");
    }
    if !qemu_or_skip(name) {
        return;
    }
    in_namespace(name, move || {
        let taps = tap(1, 9000);
        ip("-6 addr add fd00:77::1/64 dev tap0 nodad");
        // Another network, behind a router outside of the pod's subnet.
        ip("addr add 192.168.5.1/32 dev tap0");
        let mut vmm = Vmm::start();
        let agent = File::open(initramfs).unwrap();
        let request = with_nic(Engine::Qemu, 1, 1, 9000);
        vmm.boot_on_network_with(&request, &agent, &[taps[0].as_fd()])
            .unwrap();
        let route = |destination: &str, gateway: &str| guest::Route {
            destination: destination.into(),
            gateway: gateway.into(),
            on_link: true,
            ..guest::Route::default()
        };
        set_up_sandbox(
            &vmm,
            guest::Nic {
                name: "eth7".into(),
                mac: MAC.to_vec(),
                mtu: 8000,
                addresses: vec!["10.77.0.2/32".into(), "fd00:77::2/64".into()],
                routes: vec![route("0.0.0.0/0", "192.168.5.1")],
                ..guest::Nic::default()
            },
        );
        ping("-I 192.168.5.1 10.77.0.2");
        ping("-s 7972 10.77.0.2");
        ping("-6 fd00:77::2");
    });
}

#[test]
fn what_is_no_tap_is_refused_and_named() {
    let name = "what_is_no_tap_is_refused_and_named";
    if kernel().is_none() {
        return skip(name, "no guest kernel; run cargo xtask setup");
    }
    let mut vmm = Vmm::start();
    let file = tempfile::tempfile().unwrap();
    let request = with_nic(Engine::Qemu, 1, 1, 1500);
    let error = vmm.boot_on_network(&request, &[file.as_fd()]).unwrap_err();
    assert!(error.to_string().contains("no queue of a TAP"), "{error}");
    let error = vmm.boot_on_network(&request, &[]).unwrap_err();
    assert!(error.to_string().contains("1 queue pairs and 0"), "{error}");
}
