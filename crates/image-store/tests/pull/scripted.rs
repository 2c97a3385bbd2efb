//! A registry that does as it is told: an HTTP/1.1 server with one thread a
//! connection and one request a connection.

use std::{
    collections::{HashMap, VecDeque},
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

/// An answer out of the ordinary.
pub(crate) enum Reply {
    /// A status with headers and no body.
    Status(u16, Vec<(String, String)>),
    /// A status with a JSON body.
    Body(u16, Vec<u8>),
    /// The right content, announced whole, but only so many bytes of it.
    Cut(usize),
    /// The same, with the rest after [`Server::release`].
    Held(usize),
}

struct TokenRule {
    token: String,
    basic: String,
}

#[derive(Default)]
struct State {
    content: HashMap<String, Vec<u8>>,
    script: HashMap<String, VecDeque<Reply>>,
    requests: Vec<String>,
    no_ranges: bool,
    released: bool,
    token: Option<TokenRule>,
}

pub(crate) struct Server {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Server {
    pub(crate) fn start(content: HashMap<String, Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State {
            content,
            ..State::default()
        }));
        let shared = Arc::clone(&state);
        // Ends with the test process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let state = Arc::clone(&shared);
                std::thread::spawn(move || {
                    // A client that hangs up is part of the tests.
                    let _ = serve(&stream.unwrap(), address, &state);
                });
            }
        });
        Self { address, state }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Queues an answer for the next request of that path.
    pub(crate) fn next(&self, path: &str, reply: Reply) {
        self.state
            .lock()
            .unwrap()
            .script
            .entry(path.to_owned())
            .or_default()
            .push_back(reply);
    }

    pub(crate) fn without_ranges(&self) {
        self.state.lock().unwrap().no_ranges = true;
    }

    /// Lets held answers go on.
    pub(crate) fn release(&self) {
        self.state.lock().unwrap().released = true;
    }

    /// Lets in only who has the token, and gives the token only to that user.
    pub(crate) fn require_token(&self, token: &str, user: &str, password: &str) {
        let basic = base64(format!("{user}:{password}").as_bytes());
        self.state.lock().unwrap().token = Some(TokenRule {
            token: token.to_owned(),
            basic,
        });
    }

    /// Heads of the requests whose target has that part.
    pub(crate) fn requests(&self, part: &str) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let has_part = |head: &&String| head.lines().next().is_some_and(|line| line.contains(part));
        state.requests.iter().filter(has_part).cloned().collect()
    }
}

fn serve(stream: &TcpStream, address: SocketAddr, state_of: &Mutex<State>) -> std::io::Result<()> {
    let mut head = String::new();
    for line in BufReader::new(stream).lines() {
        let line = line?;
        if line.is_empty() {
            break;
        }
        // Header names in lower case, values as they are.
        let line = match line.split_once(':') {
            Some((name, value)) if !head.is_empty() => format!("{}:{value}", name.to_lowercase()),
            _ => line,
        };
        head.push_str(&line);
        head.push('\n');
    }
    let target = head.split(' ').nth(1).unwrap_or("").to_owned();
    let path = target.split('?').next().unwrap_or("").to_owned();
    let header = |name: &str| {
        head.lines()
            .find_map(|line| Some(line.strip_prefix(&format!("{name}: "))?.to_owned()))
    };
    let mut state = state_of.lock().unwrap();
    state.requests.push(head.clone());
    if let Some(rule) = &state.token {
        let shown = header("authorization");
        if path == "/token" {
            let right = shown == Some(format!("Basic {}", rule.basic));
            let body = format!("{{\"token\":\"{}\"}}", rule.token);
            return if right {
                answer(stream, 200, &[], body.as_bytes())
            } else {
                answer(stream, 401, &[], b"")
            };
        }
        if shown != Some(format!("Bearer {}", rule.token)) {
            let challenge = format!("Bearer realm=\"http://{address}/token\",service=\"test\"");
            return answer(stream, 401, &[("WWW-Authenticate".into(), challenge)], b"");
        }
    }
    let scripted = state.script.get_mut(&path).and_then(VecDeque::pop_front);
    let content = state.content.get(&path).cloned();
    let range = header("range").filter(|_| !state.no_ranges);
    drop(state);
    match (scripted, content) {
        (Some(Reply::Status(status, headers)), _) => answer(stream, status, &headers, b""),
        (Some(Reply::Body(status, body)), _) => answer(stream, status, &[], &body),
        (Some(Reply::Cut(at)), Some(body)) => {
            let mut stream = stream;
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
                body.len()
            )?;
            stream.write_all(&body[..at])
        }
        (Some(Reply::Held(at)), Some(body)) => {
            let mut stream = stream;
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
                body.len()
            )?;
            stream.write_all(&body[..at])?;
            while !state_of.lock().unwrap().released {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            stream.write_all(&body[at..])
        }
        (None, Some(body)) => {
            let from = range.and_then(|range| {
                range
                    .strip_prefix("bytes=")?
                    .strip_suffix('-')?
                    .parse::<usize>()
                    .ok()
            });
            match from {
                Some(from) => {
                    let range = format!("bytes {from}-{}/{}", body.len() - 1, body.len());
                    answer(
                        stream,
                        206,
                        &[("Content-Range".into(), range)],
                        &body[from..],
                    )
                }
                None => answer(stream, 200, &[], &body),
            }
        }
        _ => answer(stream, 404, &[], b"{}"),
    }
}

fn answer(
    mut stream: &TcpStream,
    status: u16,
    headers: &[(String, String)],
    body: &[u8],
) -> std::io::Result<()> {
    let mut head = format!(
        "HTTP/1.1 {status} Status\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all((head + "\r\n").as_bytes())?;
    stream.write_all(body)
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let at = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for digit in 0..4 {
            let value = (bits >> (18 - 6 * digit)) & 63;
            let filled = digit <= chunk.len();
            text.push(if filled {
                char::from(DIGITS[value as usize])
            } else {
                '='
            });
        }
    }
    text
}
