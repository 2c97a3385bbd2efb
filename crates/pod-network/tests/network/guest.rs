//! A namespace that plays a guest: its interface is a TAP of its own, and two
//! threads carry frames between that and the pod's TAP, as a virtio-net device
//! would.
#![expect(unsafe_code, reason = "a TAP is attached to by ioctl")]
// UNSAFETY: libc::ioctl(TUNSETIFF, TUNSETVNETHDRSZ) on the test's own TAP.

use crate::host::{command, on_thread};
use nix::sched::{CloneFlags, setns, unshare};
use pod_network::Nic;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::thread::JoinHandle;

/// A guest with one interface, `eth0`.
pub(crate) struct Guest {
    netns: File,
    /// Closed to stop the threads.
    stop: Option<OwnedFd>,
    pump: Option<JoinHandle<()>>,
}

impl Guest {
    /// Boots a guest behind the first TAP of `nic`.
    pub(crate) fn start(nic: &Nic) -> Self {
        let pod_tap = nic.taps[0].try_clone().expect("a descriptor");
        let (netns, guest_tap) = on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a guest's namespace");
            let tap = open_tap("eth0");
            command("ip", &["link", "set", "lo", "up"]);
            let mac = nic.mac.to_string();
            let mtu = nic.mtu.to_string();
            command(
                "ip",
                &["link", "set", "eth0", "address", &mac, "mtu", &mtu, "up"],
            );
            for address in &nic.addresses {
                let address = address.to_string();
                // The flag is for IPv6 only, and ignored otherwise.
                command("ip", &["address", "add", &address, "dev", "eth0", "nodad"]);
            }
            for route in &nic.routes {
                let mut arguments = vec![
                    "route".to_owned(),
                    "add".into(),
                    route.destination.to_string(),
                ];
                if let Some(gateway) = route.gateway {
                    arguments.extend(["via".into(), gateway.to_string()]);
                }
                arguments.extend(["dev".into(), "eth0".into()]);
                if route.on_link {
                    arguments.push("onlink".into());
                }
                let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
                command("ip", &arguments);
            }
            let netns = File::open("/proc/thread-self/ns/net").expect("the namespace");
            (netns, tap)
        });
        let (stopped, stop) = rustix::pipe::pipe().expect("a pipe");
        let pump = std::thread::spawn(move || carry(&pod_tap, &guest_tap, &stopped));
        Self {
            netns,
            stop: Some(stop),
            pump: Some(pump),
        }
    }

    /// Does `work` in the guest.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        on_thread(|| {
            setns(self.netns.as_fd(), CloneFlags::CLONE_NEWNET).expect("the guest's namespace");
            work()
        })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(pump) = self.pump.take() {
            let _ = pump.join();
        }
    }
}

/// Both TAPs speak frames behind the same header, so they pass as they are.
fn carry(pod: &OwnedFd, guest: &OwnedFd, stopped: &OwnedFd) {
    let mut frame = vec![0; 70_000];
    loop {
        let mut fds = [
            PollFd::new(pod, PollFlags::IN),
            PollFd::new(guest, PollFlags::IN),
            PollFd::new(stopped, PollFlags::empty()),
        ];
        if poll(&mut fds, None).is_err() {
            continue;
        }
        if !fds[2].revents().is_empty() {
            return;
        }
        for (from, to) in [(pod, guest), (guest, pod)] {
            while let Ok(n) = rustix::io::read(from, &mut frame) {
                // A full queue drops the frame, as a link does.
                let _ = rustix::io::write(to, &frame[..n]);
            }
        }
    }
}

fn open_tap(name: &str) -> OwnedFd {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = rustix::fs::open("/dev/net/tun", flags, Mode::empty()).expect("the tun driver");
    // SAFETY: all zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte.cast_signed();
    }
    request.ifr_ifru.ifru_flags =
        i16::try_from(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR).expect("16 bits");
    // SAFETY: TUNSETIFF reads and writes the one ifreq.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    let header = 12_i32;
    // SAFETY: TUNSETVNETHDRSZ reads one int.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    fd
}
