//! Two ends of a connection, for tests and measurements of networks: one static
//! program, the same in guests and on hosts. Addresses are literals: a static
//! program looks up no names.
//!
//! | call | what it does |
//! |---|---|
//! | `peer serve ADDRESS` | answers the others by TCP and UDP, for ever |
//! | `peer who ADDRESS` | prints the server's host name and the address it sees us at |
//! | `peer send ADDRESS BYTES` | sends, and compares the checksum of what arrived |
//! | `peer fetch ADDRESS BYTES` | receives, and compares the checksum |
//! | `peer ask ADDRESS COUNT` | one byte there and back, so many times; prints ns of all |
//! | `peer datagrams ADDRESS BYTES...` | sends datagrams of these sizes until each came back |
//! | `peer push ADDRESS BYTES` | sends zeros that nobody looks at; prints ns until all had come |
//! | `peer pull ADDRESS BYTES` | receives such; prints ns |
//!
//! A TCP connection begins with one line: `who`, `take`, `give BYTES`, `echo`, `sink`
//! or `source BYTES`.

use std::env;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Bytes written or read at a time.
const PIECE: usize = 256 << 10;
/// A datagram that is not answered for so long is sent again.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often, and how long after, a connection that is refused is tried again.
const TRIES: u32 = 600;
const PAUSE: Duration = Duration::from_millis(100);
/// An address that leads nowhere is given up after so long.
const LOST: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peer {}: {error}", words.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<()> {
    match words {
        ["serve", address] => serve(address.parse()?),
        ["who", address] => {
            let (_, mut answers) = request(address, "who")?;
            let mut line = String::new();
            answers.read_line(&mut line)?;
            print!("{line}");
            Ok(())
        }
        ["send", address, bytes] => send(address, bytes.parse()?),
        ["fetch", address, bytes] => fetch(address, bytes.parse()?),
        ["ask", address, count] => ask(address, count.parse()?),
        ["datagrams", address, sizes @ ..] => {
            for size in sizes {
                datagram(address.parse()?, size.parse()?)?;
            }
            println!("all came back");
            Ok(())
        }
        ["push", address, bytes] => push(address, bytes.parse()?),
        ["pull", address, bytes] => pull(address, bytes.parse()?),
        _ => Err("unknown; see the head of its source".into()),
    }
}

/// Bytes that look random and depend on their place alone.
struct Pattern {
    state: u64,
}

impl Pattern {
    fn new() -> Self {
        Self {
            state: 0x9e37_79b9_7f4a_7c15,
        }
    }

    /// The next bytes; a multiple of eight but for the last call.
    fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_mut(8) {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            let next = self.state.to_le_bytes();
            word.copy_from_slice(&next[..word.len()]);
        }
    }
}

/// Length and checksum of bytes in their order, however they are cut.
#[derive(Default)]
struct Sum {
    len: u64,
    sum: u64,
    /// Bytes that make no whole word yet.
    rest: Vec<u8>,
}

impl Sum {
    fn add(&mut self, mut bytes: &[u8]) {
        self.len += bytes.len() as u64;
        while !self.rest.is_empty() && !bytes.is_empty() {
            self.rest.push(bytes[0]);
            bytes = &bytes[1..];
            if self.rest.len() == 8 {
                let word: [u8; 8] = self.rest[..].try_into().unwrap_or_default();
                self.mix(u64::from_le_bytes(word));
                self.rest.clear();
            }
        }
        let words = bytes.chunks_exact(8);
        self.rest.extend_from_slice(words.remainder());
        for word in words {
            let word: [u8; 8] = word.try_into().unwrap_or_default();
            self.mix(u64::from_le_bytes(word));
        }
    }

    fn mix(&mut self, word: u64) {
        self.sum = (self.sum ^ word)
            .wrapping_mul(0xff51_afd7_ed55_8ccd)
            .rotate_left(29);
    }

    fn text(mut self) -> String {
        for byte in std::mem::take(&mut self.rest) {
            self.mix(u64::from(byte));
        }
        format!("{} {:016x}", self.len, self.sum)
    }
}

/// Sends `left` bytes of the pattern; their sum.
fn give(stream: &mut TcpStream, mut left: u64) -> io::Result<String> {
    let (mut pattern, mut sum) = (Pattern::new(), Sum::default());
    let mut piece = vec![0; PIECE];
    while left > 0 {
        let len = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
        pattern.fill(&mut piece[..len]);
        sum.add(&piece[..len]);
        stream.write_all(&piece[..len])?;
        left -= len as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(sum.text())
}

/// Reads to the end; the sum of it.
fn take(stream: &mut impl Read) -> io::Result<String> {
    let mut sum = Sum::default();
    let mut piece = vec![0; PIECE];
    loop {
        match stream.read(&mut piece)? {
            0 => return Ok(sum.text()),
            len => sum.add(&piece[..len]),
        }
    }
}

/// The sum of so many bytes of the pattern.
fn expected(mut left: u64) -> String {
    let (mut pattern, mut sum) = (Pattern::new(), Sum::default());
    let mut piece = vec![0; PIECE];
    while left > 0 {
        let len = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
        pattern.fill(&mut piece[..len]);
        sum.add(&piece[..len]);
        left -= len as u64;
    }
    sum.text()
}

fn serve(address: SocketAddr) -> Result<()> {
    let datagrams = retried(|| UdpSocket::bind(address))?;
    let listener = TcpListener::bind(address)?;
    println!("serving on {}", listener.local_addr()?);
    thread::spawn(move || {
        let mut datagram = vec![0; 65_536];
        loop {
            // An ICMP error of an earlier answer is no end.
            if let Ok((len, from)) = datagrams.recv_from(&mut datagram) {
                let _ = datagrams.send_to(&datagram[..len], from);
            }
        }
    });
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || {
            if let Err(error) = answer(stream) {
                eprintln!("peer serve: {error}");
            }
        });
    }
    Ok(())
}

fn answer(stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut to = stream.try_clone()?;
    let from_address = stream.peer_addr()?;
    let mut from = BufReader::with_capacity(PIECE, stream);
    let mut line = String::new();
    from.read_line(&mut line)?;
    match line.split_whitespace().collect::<Vec<_>>()[..] {
        ["who"] => {
            let name = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
            let ip = from_address.ip().to_canonical();
            writeln!(to, "{} {ip}", name.trim())?;
        }
        ["take"] => {
            let sum = take(&mut from)?;
            writeln!(to, "{sum}")?;
        }
        ["give", bytes] => drop(give(&mut to, bytes.parse()?)?),
        ["sink"] => {
            let len = drain(&mut from)?;
            writeln!(to, "{len}")?;
        }
        ["source", bytes] => pour(&mut to, bytes.parse()?)?,
        ["echo"] => {
            let mut byte = [0];
            while from.read(&mut byte)? == 1 {
                to.write_all(&byte)?;
            }
        }
        _ => return Err(format!("no request: {line:?}").into()),
    }
    Ok(())
}

/// Tries again while the other end is not there yet.
fn retried<T>(mut act: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 1..TRIES {
        match act() {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionRefused | io::ErrorKind::AddrNotAvailable
                ) =>
            {
                thread::sleep(PAUSE);
            }
            done => return done,
        }
    }
    act()
}

fn request(address: &str, line: &str) -> Result<(TcpStream, BufReader<TcpStream>)> {
    let address: SocketAddr = address.parse()?;
    let mut stream = retried(|| TcpStream::connect_timeout(&address, LOST))?;
    stream.set_nodelay(true)?;
    writeln!(stream, "{line}")?;
    let answers = BufReader::with_capacity(PIECE, stream.try_clone()?);
    Ok((stream, answers))
}

fn same(arrived: &str, sent: &str) -> Result<()> {
    if arrived != sent {
        return Err(format!("{arrived} arrived, {sent} was sent").into());
    }
    println!("{arrived}");
    Ok(())
}

fn send(address: &str, bytes: u64) -> Result<()> {
    let (mut stream, mut answers) = request(address, "take")?;
    let sent = give(&mut stream, bytes)?;
    let mut arrived = String::new();
    answers.read_line(&mut arrived)?;
    same(arrived.trim(), &sent)
}

fn fetch(address: &str, bytes: u64) -> Result<()> {
    let (_stream, mut answers) = request(address, &format!("give {bytes}"))?;
    let arrived = take(&mut answers)?;
    same(&arrived, &expected(bytes))
}

fn ask(address: &str, count: u32) -> Result<()> {
    let (mut stream, mut answers) = request(address, "echo")?;
    // All together: a guest's clock may move in steps longer than one takes.
    let start = Instant::now();
    for _ in 0..count {
        stream.write_all(b"?")?;
        answers.read_exact(&mut [0])?;
    }
    println!("{}", start.elapsed().as_nanos());
    Ok(())
}

fn datagram(address: SocketAddr, size: usize) -> Result<()> {
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut sent = vec![0; size];
    Pattern::new().fill(&mut sent);
    let mut came = vec![0; size + 1];
    for _ in 0..60 {
        // A refusal of an earlier one, or a server that is just starting.
        if socket.send(&sent).is_err() {
            thread::sleep(PAUSE);
            continue;
        }
        match socket.recv(&mut came) {
            Ok(len) if came[..len] == sent => return Ok(()),
            Ok(len) => return Err(format!("{len} other bytes came back for {size}").into()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => thread::sleep(PAUSE),
            Err(_) => {}
        }
    }
    Err(format!("{size} bytes never came back").into())
}

/// Writes so many zeros.
fn pour(stream: &mut TcpStream, mut left: u64) -> io::Result<()> {
    let zeros = vec![0; PIECE];
    while left > 0 {
        let len = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
        stream.write_all(&zeros[..len])?;
        left -= len as u64;
    }
    stream.shutdown(Shutdown::Write)
}

/// Reads to the end; how many bytes that were.
fn drain(stream: &mut impl Read) -> io::Result<u64> {
    let (mut piece, mut all) = (vec![0; PIECE], 0);
    loop {
        match stream.read(&mut piece)? {
            0 => return Ok(all),
            len => all += len as u64,
        }
    }
}

fn push(address: &str, bytes: u64) -> Result<()> {
    let (mut stream, mut answers) = request(address, "sink")?;
    let start = Instant::now();
    pour(&mut stream, bytes)?;
    let mut arrived = String::new();
    answers.read_line(&mut arrived)?;
    let took = start.elapsed();
    if arrived.trim() != bytes.to_string() {
        return Err(format!("{arrived:?} of {bytes} bytes arrived").into());
    }
    println!("{}", took.as_nanos());
    Ok(())
}

fn pull(address: &str, bytes: u64) -> Result<()> {
    let (_stream, mut answers) = request(address, &format!("source {bytes}"))?;
    let start = Instant::now();
    let arrived = drain(&mut answers)?;
    let took = start.elapsed();
    if arrived != bytes {
        return Err(format!("{arrived} of {bytes} bytes arrived").into());
    }
    println!("{}", took.as_nanos());
    Ok(())
}
