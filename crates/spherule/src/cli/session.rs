//! `spherule exec` and `spherule attach`: our standard streams and terminal as
//! those of a process in a container; we end as it does.

use super::client::{Daemon, refused};
use super::terminal::{self, Came, Raw, Signals};
use anyhow::{Context, bail};
use pod_api::v1::session_input::Kind as In;
use pod_api::v1::session_output::Kind as Out;
use pod_api::v1::{
    AttachRequest, AttachStart, ExecRequest, ExecStart, SessionInput, SessionOutput,
    attach_request, exec_request,
};
use std::io::{self, Read, Write};
use std::process::ExitCode;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// Most bytes of input in a message.
const PIECE: usize = 16 << 10;
/// Messages that wait for a slow daemon, or for those who read us.
const BACKLOG: usize = 4;
/// What ends an attached session on a terminal, as in docker: ^P ^Q.
const DETACH: [u8; 2] = [0x10, 0x11];
/// Our exit code once our terminal has gone: as if SIGHUP had ended us.
const HUNG_UP: u8 = 128 + 1;

#[derive(Debug, clap::Args)]
pub(crate) struct ExecArgs {
    /// Pass our standard input on
    #[arg(long, short = 'i')]
    stdin: bool,
    /// Give the command a terminal
    #[arg(long, short)]
    tty: bool,
    /// In this container [default: the pod's first]
    #[arg(long, short, default_value_t)]
    container: String,
    /// Id, unique prefix of it, name, or namespace/name
    pod: String,
    /// Program and arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct AttachArgs {
    /// Pass our standard input on
    #[arg(long, short = 'i')]
    stdin: bool,
    /// The container has a terminal: be one for it (^P ^Q detaches)
    #[arg(long, short)]
    tty: bool,
    /// To this container [default: the pod's first]
    #[arg(long, short, default_value_t)]
    container: String,
    /// Id, unique prefix of it, name, or namespace/name
    pod: String,
}

/// Runs a command; the exit code is the command's.
pub(crate) async fn exec(mut daemon: Daemon, args: ExecArgs) -> anyhow::Result<ExitCode> {
    let start = ExecStart {
        pod: args.pod,
        container: args.container,
        command: args.command,
        stdin: args.stdin,
        terminal: args.tty,
        size: args.tty.then(terminal::size).flatten(),
        copy: None,
    };
    let streams = Streams::exec(&mut daemon, start).await?;
    streams.serve(args.stdin, args.tty, false).await
}

/// Attaches to a container; the exit code is the container's, or 0 where we leave
/// it.
pub(crate) async fn attach(mut daemon: Daemon, args: AttachArgs) -> anyhow::Result<ExitCode> {
    let start = AttachStart {
        pod: args.pod,
        container: args.container,
        stdin: args.stdin,
        terminal: args.tty,
    };
    let streams = Streams::attach(&mut daemon, start).await?;
    streams.serve(args.stdin, args.tty, true).await
}

/// Both ways of a session.
#[derive(Debug)]
pub(super) struct Streams {
    pub(super) input: mpsc::Sender<SessionInput>,
    pub(super) output: Streaming<SessionOutput>,
}

impl Streams {
    /// Of a command, once it runs.
    pub(super) async fn exec(daemon: &mut Daemon, start: ExecStart) -> anyhow::Result<Self> {
        let (input, inputs) = mpsc::channel(BACKLOG);
        let start = exec_request::Kind::Start(start);
        let inputs = ReceiverStream::new(inputs).map(exec_request::Kind::Input);
        let requests = tokio_stream::once(start).chain(inputs);
        let requests = requests.map(|kind| ExecRequest { kind: Some(kind) });
        let output = daemon.pods.exec(requests).await.map_err(refused)?;
        let output = output.into_inner();
        Ok(Self { input, output })
    }

    /// Of a container's own streams, its terminal of our size.
    pub(super) async fn attach(daemon: &mut Daemon, start: AttachStart) -> anyhow::Result<Self> {
        let is_terminal = start.terminal;
        let (input, inputs) = mpsc::channel(BACKLOG);
        let start = attach_request::Kind::Start(start);
        let inputs = ReceiverStream::new(inputs).map(attach_request::Kind::Input);
        let requests = tokio_stream::once(start).chain(inputs);
        let requests = requests.map(|kind| AttachRequest { kind: Some(kind) });
        let output = daemon.pods.attach(requests).await.map_err(refused)?;
        let output = output.into_inner();
        if is_terminal && let Some(size) = terminal::size() {
            say(&input, In::Resize(size)).await;
        }
        Ok(Self { input, output })
    }

    /// Is the session's other end until it is over; `may_leave`: also until the keys
    /// that detach are typed.
    pub(super) async fn serve(
        self,
        stdin: bool,
        terminal: bool,
        may_leave: bool,
    ) -> anyhow::Result<ExitCode> {
        // Before the terminal is changed, so that nothing ends us in between.
        let signals = terminal.then(Signals::catch).transpose()?;
        let raw = if stdin && terminal {
            Raw::enter()?
        } else {
            None
        };
        let may_leave = may_leave && raw.is_some();
        let Self { input, output } = self;
        // Each at its own pace: a command may take no input until its output is
        // taken.
        tokio::select! {
            code = show_all(output) => Ok(ExitCode::from(code?)),
            () = pass_stdin(&input, stdin, may_leave) => Ok(ExitCode::SUCCESS),
            number = pass_signals(&input, signals) => {
                Ok(ExitCode::from(u8::try_from(128 + number).unwrap_or(255)))
            }
            gone = gone(raw.as_ref()) => gone.map(|()| ExitCode::from(HUNG_UP)),
        }
    }
}

/// Waits until our terminal has gone, if we have one.
async fn gone(raw: Option<&Raw>) -> anyhow::Result<()> {
    match raw {
        Some(raw) => raw.gone().await.context("cannot watch the terminal"),
        None => std::future::pending().await,
    }
}

/// A session that is over hears nothing; its output says why.
async fn say(input: &mpsc::Sender<SessionInput>, kind: In) {
    let _ = input.send(SessionInput { kind: Some(kind) }).await;
}

/// Shows the output to its end; returns the exit code.
async fn show_all(output: Streaming<SessionOutput>) -> anyhow::Result<u8> {
    let (shown, mut written) = write_out();
    let code = tokio::select! {
        code = hear(output, shown) => code,
        // Before all is said: it cannot be.
        failed = &mut written => {
            failed??;
            bail!("the output was not written to its end");
        }
    };
    written.await??;
    code
}

/// Hears the output to its end; returns the exit code.
async fn hear(
    mut output: Streaming<SessionOutput>,
    shown: mpsc::Sender<Out>,
) -> anyhow::Result<u8> {
    while let Some(said) = output.message().await.map_err(refused)? {
        match said.kind {
            Some(Out::Exited(exit)) => return Ok(u8::try_from(exit.code).unwrap_or(255)),
            // It tells itself why it takes no more.
            Some(kind) => drop(shown.send(kind).await),
            None => {}
        }
    }
    bail!("the daemon ended the session without a result")
}

/// Passes our standard input on; returns where we are to leave the session.
async fn pass_stdin(input: &mpsc::Sender<SessionInput>, stdin: bool, may_leave: bool) {
    if stdin {
        let mut typed = read_stdin();
        let mut keys = Keys::default();
        while let Some(bytes) = typed.recv().await {
            if may_leave && keys.leave(&bytes) {
                return;
            }
            say(input, In::Stdin(bytes)).await;
        }
        say(input, In::StdinClosed(true)).await;
    }
    std::future::pending().await
}

/// Passes our terminal's size on; returns the number of a signal that ends us.
async fn pass_signals(input: &mpsc::Sender<SessionInput>, signals: Option<Signals>) -> i32 {
    let Some(mut signals) = signals else {
        return std::future::pending().await;
    };
    // To be told, once there is room: input that nobody takes does not keep us here.
    let mut size = None;
    loop {
        tokio::select! {
            came = signals.next() => match came {
                Came::Resize => size = terminal::size(),
                Came::End(number) => return number,
            },
            Ok(room) = input.reserve(), if size.is_some() => {
                let kind = size.take().map(In::Resize);
                room.send(SessionInput { kind });
            }
        }
    }
}

/// Our standard output and error, and whether all could be written. By a thread of
/// its own, as [`read_stdin`]: with a write that waits, no signal would be heard.
fn write_out() -> (mpsc::Sender<Out>, oneshot::Receiver<io::Result<()>>) {
    let (shown, mut said) = mpsc::channel(BACKLOG);
    let (tell, written) = oneshot::channel();
    std::thread::spawn(move || {
        let result = (|| {
            while let Some(kind) = said.blocking_recv() {
                show(kind)?;
            }
            Ok(())
        })();
        // Nobody waits for it where a signal ends us.
        let _ = tell.send(result);
    });
    (shown, written)
}

/// Puts output on our own.
fn show(kind: Out) -> io::Result<()> {
    match kind {
        Out::Stdout(bytes) => {
            let mut stdout = io::stdout().lock();
            stdout.write_all(&bytes)?;
            stdout.flush()?;
        }
        Out::Stderr(bytes) => io::stderr().lock().write_all(&bytes)?,
        Out::Lost(bytes) => {
            let text =
                format!("\r\n[{bytes} bytes of output are missing here: we were too slow]\r\n");
            io::stderr().lock().write_all(text.as_bytes())?;
        }
        Out::Exited(_) => {}
    }
    Ok(())
}

/// Our standard input in pieces. By a thread of its own: a read that waits cannot
/// be given up, and must not hold up our end.
fn read_stdin() -> mpsc::Receiver<Vec<u8>> {
    let (sender, pieces) = mpsc::channel(BACKLOG);
    std::thread::spawn(move || {
        let mut bytes = vec![0; PIECE];
        loop {
            match io::stdin().lock().read(&mut bytes) {
                Ok(0) => return,
                Ok(read) => {
                    if sender.blocking_send(bytes[..read].to_vec()).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    });
    pieces
}

/// Looks for the keys that detach, also where they come one by one.
#[derive(Debug, Default)]
struct Keys {
    last: u8,
}

impl Keys {
    fn leave(&mut self, bytes: &[u8]) -> bool {
        bytes.iter().any(|&byte| {
            let before = std::mem::replace(&mut self.last, byte);
            [before, byte] == DETACH
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_detach_are_found_however_they_come() {
        let mut keys = Keys::default();
        assert!(!keys.leave(b"ls\r\x10"));
        assert!(keys.leave(b"\x11"));
        let mut keys = Keys::default();
        assert!(!keys.leave(b"\x11\x10x\x11"));
        assert!(keys.leave(b"a\x10\x11"));
    }
}
