//! Exec and attach: a session of the back end on the streams of a client.

use crate::backend::{self, AttachRequest, ExecRequest, Failure, Session, Streams};
use crate::input::Input;
use crate::output::Output;
use crate::place::Place;
use crate::resize::ResizeStream;
use crate::status::{End, StatusForm};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use std::future::pending;

/// The streams of a client that wants a session.
pub(crate) struct ClientStreams {
    pub(crate) stdin: Option<Input>,
    pub(crate) stdout: Option<Output>,
    pub(crate) stderr: Option<Output>,
    pub(crate) resize: Option<Input>,
    pub(crate) error: Output,
    pub(crate) form: StatusForm,
}

/// What a client asked for.
pub(crate) enum Command {
    Exec(ExecRequest),
    Attach(AttachRequest),
}

impl Command {
    pub(crate) fn streams(&self) -> Streams {
        match self {
            Self::Exec(request) => request.streams,
            Self::Attach(request) => request.streams,
        }
    }

    async fn start(self, resize: &mut ResizeStream, at: &Place) -> Result<Session, Failure> {
        match self {
            Self::Exec(request) => {
                let size = resize.first(at.limits.terminal_size).await;
                at.backend.exec(request, size).await
            }
            Self::Attach(request) => at.backend.attach(request).await,
        }
    }
}

/// Starts a session, serves it to its end or the server's and tells how it ended.
pub(crate) async fn serve(mut client: ClientStreams, command: Command, at: &Place) {
    let attached = matches!(command, Command::Attach(_));
    let work = async {
        let mut resize = ResizeStream::new(client.resize.take());
        match command.start(&mut resize, at).await {
            Ok(session) => match run(&mut client, resize, session).await {
                // What was attached to ended, whatever its code.
                End::Exit(_) if attached => End::Success,
                end => end,
            },
            Err(failure) => End::Failure(failure.0),
        }
    };
    let end = tokio::select! {
        // A result that is there is told.
        biased;
        end = work => end,
        reason = at.ending.reason() => End::Failure(reason),
    };
    let outputs = [client.stdout.take(), client.stderr.take()];
    for mut output in outputs.into_iter().flatten() {
        output.finish().await;
    }
    let told = end.tell(client.form);
    let _ = client.error.send(told.into()).await;
    client.error.finish().await;
}

async fn run(client: &mut ClientStreams, resize: ResizeStream, session: Session) -> End {
    let Session { input, output } = session;
    let stdin = client.stdin.take();
    let listen = async {
        listen(stdin, resize, input).await;
        // The session's end is its output's to tell.
        pending().await
    };
    tokio::select! {
        end = speak(&mut client.stdout, &mut client.stderr, output) => end,
        end = listen => end,
    }
}

/// Hands on what the client says, as long as anybody listens.
async fn listen(mut stdin: Option<Input>, mut resize: ResizeStream, mut session: backend::Inputs) {
    loop {
        let input = tokio::select! {
            read = next(&mut stdin) => match read {
                Some(bytes) => backend::Input::Stdin(bytes.into()),
                None => backend::Input::StdinClosed,
            },
            told = resize.next() => match told {
                Some(size) => backend::Input::Resize(size),
                None => continue,
            },
        };
        if session.send(input).await.is_err() {
            return;
        }
    }
}

/// The next bytes of an input; `None`, once: there are no more.
async fn next(input: &mut Option<Input>) -> Option<Bytes> {
    let Some(open) = input else {
        return pending().await;
    };
    let read = open.next().await.unwrap_or(None);
    if read.is_none() {
        *input = None;
    }
    read
}

/// Hands on what the session says, to its end. What nobody wants is dropped. Output
/// that was lost is told at the end: the streams carry the command's bytes only.
async fn speak(
    stdout: &mut Option<Output>,
    stderr: &mut Option<Output>,
    mut session: backend::Outputs,
) -> End {
    let mut lost = 0_u64;
    while let Some(said) = session.next().await {
        let (output, bytes) = match said {
            Ok(backend::Output::Stdout(bytes)) => (&mut *stdout, bytes),
            Ok(backend::Output::Stderr(bytes)) => (&mut *stderr, bytes),
            Ok(backend::Output::Lost(bytes)) => {
                lost = lost.saturating_add(bytes);
                continue;
            }
            Ok(backend::Output::Exited(_)) if lost > 0 => {
                return End::Failure(format!(
                    "{lost} bytes of output were lost: this client read too slowly; the \
                     container's log, if it has one, holds them"
                ));
            }
            Ok(backend::Output::Exited(code)) => return End::Exit(code),
            Err(failure) => return End::Failure(failure.0),
        };
        if let Some(open) = output
            && open.send(bytes.into()).await.is_err()
        {
            *output = None;
        }
    }
    End::Failure("the session ended without an exit code".to_owned())
}
