//! PID 1 of the guests in these tests: does on the guest's side what a line on
//! vsock port 1024 asks for. Compiled by the tests themselves (support/guest.rs)
//! with rustc alone, so it has no dependencies but the C library's symbols.

use std::ffi::{CString, c_char, c_int, c_ulong, c_void};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd};

unsafe extern "C" {
    fn mount(
        from: *const c_char,
        to: *const c_char,
        kind: *const c_char,
        flags: c_ulong,
        data: *const c_void,
    ) -> c_int;
    fn reboot(how: c_int) -> c_int;
    fn socket(family: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn bind(fd: c_int, address: *const VsockAddress, len: u32) -> c_int;
    fn listen(fd: c_int, backlog: c_int) -> c_int;
    fn accept(fd: c_int, address: *mut c_void, len: *mut u32) -> c_int;
    fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int;
}

#[repr(C)]
struct VsockAddress {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    flags: u8,
    zero: [u8; 3],
}

const AF_VSOCK: c_int = 40;
const SOCK_STREAM: c_int = 1;
const ANY: u32 = u32::MAX;
const RESET: c_int = 0x0123_4567;

fn mount_at(kind: &str, to: &str) {
    let _ = std::fs::create_dir_all(to);
    let kind = CString::new(kind).unwrap();
    let to = CString::new(to).unwrap();
    unsafe { mount(kind.as_ptr(), to.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
}

/// FNV-1a, as the host's side computes it too.
fn checksum(bytes: &[u8], mut sum: u64) -> u64 {
    for &byte in bytes {
        sum = (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    }
    sum
}

fn sum(device: &str, offset: u64, mut len: u64) -> std::io::Result<u64> {
    let mut file = File::open(format!("/dev/{device}"))?;
    file.seek(SeekFrom::Start(offset))?;
    let mut sum = 0xcbf2_9ce4_8422_2325;
    let mut piece = vec![0; 1 << 20];
    while len > 0 {
        let want = piece.len().min(len as usize);
        file.read_exact(&mut piece[..want])?;
        sum = checksum(&piece[..want], sum);
        len -= want as u64;
    }
    Ok(sum)
}

fn fill(device: &str, offset: u64, len: usize, byte: u8) -> std::io::Result<u64> {
    let mut file = File::options().write(true).open(format!("/dev/{device}"))?;
    file.seek(SeekFrom::Start(offset))?;
    file.write_all(&vec![byte; len])?;
    file.sync_all()?;
    Ok(len as u64)
}

fn random() -> std::io::Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/hwrng")?.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn cpus() -> std::io::Result<u64> {
    let text = std::fs::read_to_string("/proc/cpuinfo")?;
    Ok(text.matches("processor\t").count() as u64)
}

fn memory_mib() -> std::io::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let kib = text.split_whitespace().nth(1).unwrap_or("0");
    Ok(kib.parse::<u64>().unwrap_or(0) >> 10)
}

/// Sends back `len` bytes as they come.
fn echo(stream: &mut BufReader<File>, mut len: u64) -> std::io::Result<()> {
    while len > 0 {
        let got = stream.fill_buf()?.to_vec();
        if got.is_empty() {
            break;
        }
        stream.get_mut().write_all(&got)?;
        stream.consume(got.len());
        len -= got.len() as u64;
    }
    Ok(())
}

/// struct ifreq of an IPv4 address or of flags.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    value: [u8; 24],
}

/// Gives an interface an IPv4 address, and brings it up.
fn configure(name: &str, address: &str, mask: &str) -> std::io::Result<()> {
    const SET_FLAGS: c_ulong = 0x8914;
    const SET_ADDRESS: c_ulong = 0x8916;
    const SET_MASK: c_ulong = 0x891c;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let internet = |address: &str| {
        let address: Ipv4Addr = address.parse().unwrap();
        let mut value = [0; 24];
        value[0] = 2;
        value[4..8].copy_from_slice(&address.octets());
        value
    };
    // IFF_UP and IFF_RUNNING.
    let mut flags = [0; 24];
    flags[0] = 0x41;
    for (request, value) in [
        (SET_ADDRESS, internet(address)),
        (SET_MASK, internet(mask)),
        (SET_FLAGS, flags),
    ] {
        let mut argument = InterfaceRequest {
            name: [0; 16],
            value,
        };
        argument.name[..name.len()].copy_from_slice(name.as_bytes());
        let argument = (&raw mut argument).cast();
        if unsafe { ioctl(socket.as_raw_fd(), request, argument) } < 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Reads what comes over TCP and sends it back once all of it is there; its
/// checksum.
fn exchange(address: &str) -> std::io::Result<u64> {
    let mut stream = TcpStream::connect(address)?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    stream.write_all(&bytes)?;
    stream.shutdown(Shutdown::Write)?;
    Ok(checksum(&bytes, 0xcbf2_9ce4_8422_2325))
}

/// Sends a datagram of `len` bytes and waits for it to come back.
fn datagram(address: &str, len: usize) -> std::io::Result<usize> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(address)?;
    socket.send(&vec![7; len])?;
    let mut back = vec![0; len + 1];
    socket.recv(&mut back)
}

fn answer(line: &str, stream: &mut BufReader<File>) -> std::io::Result<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |at: usize| words[at].parse::<u64>().unwrap();
    Ok(match words[0] {
        "cpus" => cpus()?.to_string(),
        "memory" => memory_mib()?.to_string(),
        "sum" => sum(words[1], number(2), number(3))?.to_string(),
        "fill" => fill(words[1], number(2), number(3) as usize, number(4) as u8)?.to_string(),
        "random" => random()?.to_string(),
        "read" => std::fs::read_to_string(words[1])?.trim().replace('\n', " "),
        "print" => {
            File::options()
                .write(true)
                .open("/dev/kmsg")?
                .write_all(line.as_bytes())?;
            "ok".into()
        }
        "echo" => {
            echo(stream, number(1))?;
            return Ok(String::new());
        }
        "configure" => {
            configure(words[1], words[2], words[3])?;
            "ok".into()
        }
        "exchange" => exchange(words[1])?.to_string(),
        "datagram" => datagram(words[1], number(2) as usize)?.to_string(),
        "panic" => {
            std::fs::write("/proc/sysrq-trigger", "c")?;
            "not reached".into()
        }
        "exit" => std::process::exit(1),
        "reset" => {
            unsafe { reboot(RESET) };
            "not reached".into()
        }
        other => format!("unknown {other}"),
    })
}

fn serve(stream: File) {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while stream.read_line(&mut line).unwrap_or(0) > 0 {
        let text = match answer(&line, &mut stream) {
            Ok(text) => text,
            Err(e) => format!("error {e}"),
        };
        if !text.is_empty() && stream.get_mut().write_all(format!("{text}\n").as_bytes()).is_err()
        {
            return;
        }
        line.clear();
    }
}

fn main() {
    mount_at("devtmpfs", "/dev");
    mount_at("proc", "/proc");
    mount_at("sysfs", "/sys");
    let address = VsockAddress {
        family: AF_VSOCK as u16,
        reserved: 0,
        port: 1024,
        cid: ANY,
        flags: 0,
        zero: [0; 3],
    };
    let listener = unsafe { socket(AF_VSOCK, SOCK_STREAM, 0) };
    unsafe {
        bind(listener, &address, size_of::<VsockAddress>() as u32);
        listen(listener, 8);
    }
    loop {
        let fd = unsafe { accept(listener, std::ptr::null_mut(), std::ptr::null_mut()) };
        if fd >= 0 {
            let stream = unsafe { File::from_raw_fd(fd) };
            std::thread::spawn(move || serve(stream));
        }
    }
}
