//! The server as its clients see it: real bytes over real sockets, with a back end
//! that needs no container.

mod commands;
mod ending;
mod forwards;
mod fuzz;
mod requests;
mod spdy_client;
mod tls;
mod vanish;
mod websocket_client;

use crate::backend::{
    AttachRequest, Backend, Connection, Ended, ExecRequest, Failure, Input, Output,
    PortForwardRequest, Session, Streams, TerminalSize,
};
use crate::limits::Limits;
use crate::server::{Config, StreamingServer};
use crate::urls::StreamUrls;
use futures_util::future::{BoxFuture, ready};
use futures_util::{FutureExt, SinkExt, StreamExt};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

/// A server of this test's own.
pub(super) struct Fixture {
    pub(super) urls: StreamUrls,
    pub(super) backend: Fake,
    task: JoinHandle<()>,
    end: Arc<Notify>,
}

/// Why the server ends, if it does.
pub(super) const REASON: &str = "the server is being restarted";

impl Fixture {
    pub(super) async fn new() -> Self {
        Self::with(Limits::default()).await
    }

    pub(super) async fn with(limits: Limits) -> Self {
        Self::of(Config {
            limits,
            spill: Some(std::env::temp_dir()),
            ..Config::loopback()
        })
        .await
    }

    pub(super) async fn of(config: Config) -> Self {
        let backend = Fake::default();
        let server = StreamingServer::bind(config, Arc::new(backend.clone())).await;
        let server = server.unwrap();
        let urls = server.urls();
        let end = Arc::new(Notify::new());
        let ended = Arc::clone(&end);
        let serve = server.serve(async move {
            ended.notified().await;
            REASON.to_owned()
        });
        Self {
            urls,
            backend,
            task: tokio::spawn(serve),
            end,
        }
    }

    /// Ends the server.
    pub(super) fn end(&self) {
        self.end.notify_one();
    }

    /// Returns when the server has ended.
    pub(super) async fn ended(&mut self) {
        (&mut self.task).await.unwrap();
    }

    /// The URL of a command without a terminal, with all three streams.
    pub(super) fn exec(&self, command: &str) -> String {
        self.exec_with(command, ALL)
    }

    pub(super) fn exec_with(&self, command: &str, streams: Streams) -> String {
        let request = ExecRequest {
            container: "c".to_owned(),
            command: command.split(' ').map(str::to_owned).collect(),
            streams,
        };
        self.urls.exec(request).unwrap()
    }

    pub(super) fn forward(&self, ports: &[u16]) -> String {
        let request = PortForwardRequest {
            sandbox: "s".to_owned(),
            ports: ports.to_vec(),
        };
        self.urls.port_forward(request).unwrap()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(super) const ALL: Streams = Streams {
    stdin: true,
    stdout: true,
    stderr: true,
    terminal: false,
};

/// Bytes that tell where they belong.
pub(super) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| u8::try_from(n % 251).unwrap()).collect()
}

/// A back end of small programs.
#[derive(Debug, Clone, Default)]
pub(super) struct Fake {
    alive: Arc<AtomicUsize>,
    /// Lets the service on port 10 read.
    pub(super) read: Arc<Notify>,
}

struct Alive(Arc<AtomicUsize>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Fake {
    fn one_more(&self) -> Alive {
        self.alive.fetch_add(1, Ordering::SeqCst);
        Alive(Arc::clone(&self.alive))
    }

    /// Waits until that many sessions and connections live.
    pub(super) async fn lives(&self, wanted: usize) {
        while self.alive.load(Ordering::SeqCst) != wanted {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn session(&self, command: Vec<String>) -> Session {
        let (input, inputs) = mpsc::channel(8);
        let (outputs, output) = mpsc::channel(8);
        let alive = self.one_more();
        tokio::spawn(async move {
            let _alive = alive;
            let gone = outputs.clone();
            tokio::select! {
                () = program(command, inputs, outputs) => {}
                () = gone.closed() => {}
            }
        });
        let input = futures_util::sink::unfold(input, async |input, said| {
            input.send(said).await.map_err(|_| Ended)?;
            Ok(input)
        });
        let output = futures_util::stream::unfold(output, async |mut output| {
            let said = output.recv().await?;
            Some((said, output))
        });
        Session {
            input: Box::pin(input.sink_map_err(|Ended| Ended)),
            output: output.boxed(),
        }
    }
}

impl Backend for Fake {
    fn exec(
        &self,
        mut request: ExecRequest,
        size: Option<TerminalSize>,
    ) -> BoxFuture<'static, Result<Session, Failure>> {
        let this = self.clone();
        if request.command == ["size"] {
            request.command.push(in_words(size));
        }
        async move {
            match request.command[0].as_str() {
                "missing" => Err(Failure("no such program".to_owned())),
                _ => Ok(this.session(request.command)),
            }
        }
        .boxed()
    }

    fn attach(&self, request: AttachRequest) -> BoxFuture<'static, Result<Session, Failure>> {
        let command = match request.container.as_str() {
            "fast" => "lose",
            "silent" => "sleep",
            _ => "exit",
        };
        ready(Ok(self.session(vec![command.into(), "9".into()]))).boxed()
    }

    fn port_forward(
        &self,
        sandbox: &str,
        port: u16,
    ) -> BoxFuture<'static, Result<Box<dyn Connection>, Failure>> {
        assert_eq!(sandbox, "s");
        if port == 1 {
            return ready(Err(Failure("nothing listens there".to_owned()))).boxed();
        }
        let (ours, theirs) = duplex(64 << 10);
        let alive = self.one_more();
        let read = Arc::clone(&self.read);
        tokio::spawn(async move {
            let _alive = alive;
            if port == 10 {
                read.notified().await;
            }
            service(port, theirs).await;
        });
        ready(Ok(Box::new(ours) as Box<dyn Connection>)).boxed()
    }
}

/// What comes within half a minute: a server that says nothing fails its test.
async fn soon<T>(coming: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(30);
    tokio::time::timeout(limit, coming).await.unwrap()
}

fn in_words(size: Option<TerminalSize>) -> String {
    size.map_or("unknown".to_owned(), |size| {
        format!("{}x{}", size.columns, size.rows)
    })
}

/// What a command does.
async fn program(
    command: Vec<String>,
    mut inputs: mpsc::Receiver<Input>,
    outputs: mpsc::Sender<Result<Output, Failure>>,
) {
    let number = || command.get(1).and_then(|n| n.parse().ok()).unwrap_or(0);
    let say = async |output| {
        let _ = outputs.send(Ok(output)).await;
    };
    match command[0].as_str() {
        "cat" => {
            while let Some(Input::Stdin(bytes)) = inputs.recv().await {
                say(Output::Stdout(bytes)).await;
            }
        }
        "both" => {
            say(Output::Stdout(b"out".to_vec())).await;
            say(Output::Stderr(b"err".to_vec())).await;
            return say(Output::Exited(3)).await;
        }
        "exit" => return say(Output::Exited(number())).await,
        "lose" => {
            for bytes in [number(), 1] {
                say(Output::Lost(bytes.try_into().unwrap())).await;
                say(Output::Stdout(b"more".to_vec())).await;
            }
        }
        "flood" => {
            let bytes = pattern(usize::try_from(number()).unwrap());
            for piece in bytes.chunks(60_000) {
                say(Output::Stdout(piece.to_vec())).await;
            }
        }
        // Is told something, and takes no more.
        "deaf" => {
            inputs.recv().await;
            drop(inputs);
            tokio::time::sleep(Duration::from_millis(200)).await;
            say(Output::Stdout(b"still here".to_vec())).await;
        }
        // As told when it began, and the next.
        "size" => {
            say(Output::Stdout(command[1].clone().into_bytes())).await;
            while let Some(input) = inputs.recv().await {
                if let Input::Resize(size) = input {
                    let text = format!(", {}", in_words(Some(size)));
                    say(Output::Stdout(text.into_bytes())).await;
                    break;
                }
            }
        }
        "yes" => {
            while outputs
                .send(Ok(Output::Stdout(b"y\n".to_vec())))
                .await
                .is_ok()
            {}
            return;
        }
        // Reads nothing, says nothing.
        "sleep" => return std::future::pending().await,
        "die" => {
            let _ = outputs.send(Err(Failure("the VM died".to_owned()))).await;
            return;
        }
        _ => return say(Output::Exited(127)).await,
    }
    say(Output::Exited(0)).await;
}

/// What listens on a port.
async fn service(port: u16, mut connection: DuplexStream) {
    match port {
        7 => {
            let (mut read, mut write) = tokio::io::split(connection);
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        }
        // Counts until the other side has said all, and answers then.
        10 | 80 => {
            let mut bytes = Vec::new();
            let _ = connection.read_to_end(&mut bytes).await;
            let answer = format!("{} bytes", bytes.len());
            let _ = connection.write_all(answer.as_bytes()).await;
            if port == 10 {
                let digest = Sha256::digest(&bytes);
                let _ = connection.write_all(&digest).await;
            }
        }
        // As 10, slowly.
        11 => {
            let mut digest = Sha256::new();
            let mut bytes = vec![0; 10_000];
            while let Ok(read @ 1..) = connection.read(&mut bytes).await {
                digest.update(&bytes[..read]);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let _ = connection.write_all(&digest.finalize()).await;
        }
        // Reads nothing, as long as anybody is there.
        _ => {
            let mut byte = [0];
            let _ = connection.read_exact(&mut byte).await;
            while connection.write(&[]).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
}
