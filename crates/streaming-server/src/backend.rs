//! What serves the streams: the side of containers and pods.

use futures_util::Sink;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use std::pin::Pin;
use tokio::io::{AsyncRead, AsyncWrite};

/// Runs commands, attaches to containers, connects to ports.
///
/// A future that is dropped leaves nothing; so does a session or connection.
pub trait Backend: Send + Sync + 'static {
    /// Runs a command in a container, its terminal of that size; returns when it runs.
    fn exec(
        &self,
        request: ExecRequest,
        size: Option<TerminalSize>,
    ) -> BoxFuture<'static, Result<Session, Failure>>;

    /// Attaches to what a container runs.
    fn attach(&self, request: AttachRequest) -> BoxFuture<'static, Result<Session, Failure>>;

    /// Connects to a port within a sandbox.
    fn port_forward(
        &self,
        sandbox: &str,
        port: u16,
    ) -> BoxFuture<'static, Result<Box<dyn Connection>, Failure>>;
}

/// Which of the standard streams a client wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Streams {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error; never with a terminal.
    pub stderr: bool,
    /// A terminal.
    pub terminal: bool,
}

/// A command to run in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecRequest {
    /// The container's id.
    pub container: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// What of it the client wants.
    pub streams: Streams,
}

/// A container to attach to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachRequest {
    /// The container's id.
    pub container: String,
    /// What of it the client wants.
    pub streams: Streams,
}

/// A sandbox to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortForwardRequest {
    /// The sandbox's id.
    pub sandbox: String,
    /// The ports that a WebSocket client gets channels for, in this order. A SPDY
    /// client names them itself.
    pub ports: Vec<u16>,
}

/// What runs. Dropping it ends a command, and leaves what was attached to.
pub struct Session {
    /// What the client says; an error: nobody listens any more.
    pub input: Inputs,
    /// What is said to the client. Ends with [`Output::Exited`] or an error.
    pub output: Outputs,
}

/// What takes a session's input.
pub type Inputs = Pin<Box<dyn Sink<Input, Error = Ended> + Send>>;

/// What gives a session's output.
pub type Outputs = BoxStream<'static, Result<Output, Failure>>;

/// What goes to a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Bytes of standard input.
    Stdin(Vec<u8>),
    /// There is no more of it.
    StdinClosed,
    /// The terminal's new size.
    Resize(TerminalSize),
}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// What comes from a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Standard output.
    Stdout(Vec<u8>),
    /// Standard error.
    Stderr(Vec<u8>),
    /// So many bytes of output are missing here: the client read too slowly.
    Lost(u64),
    /// The end, with the exit code.
    Exited(i32),
}

/// A session's input has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the session has ended")]
pub struct Ended;

/// Why a request cannot be served; what the client is told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Failure(pub String);

/// A connection to a port.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}
