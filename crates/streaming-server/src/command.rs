//! Exec and attach: a session of the back end on the streams of a client.

use crate::backend::{self, Failure, Session};
use crate::ending::Ending;
use crate::resize::Resizes;
use crate::status::{End, StatusForm};
use crate::stream::{Input, Output};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use std::future::{Future, pending};

/// The streams of a client that wants a session.
pub(crate) struct ClientStreams {
    pub(crate) stdin: Option<Input>,
    pub(crate) stdout: Option<Output>,
    pub(crate) stderr: Option<Output>,
    pub(crate) resize: Option<Input>,
    pub(crate) error: Output,
    pub(crate) form: StatusForm,
}

/// What a session's end means to its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExitCodes {
    /// A command's exit code is its result.
    Told,
    /// What was attached to ended, whatever its code.
    Ignored,
}

/// Starts a session, serves it to its end or the server's and tells how it ended.
pub(crate) async fn serve(
    mut client: ClientStreams,
    start: impl Future<Output = Result<Session, Failure>>,
    codes: ExitCodes,
    ending: &Ending,
) {
    let work = async {
        match start.await {
            Ok(session) => run(&mut client, session, codes).await,
            Err(failure) => End::Failure(failure.0),
        }
    };
    let end = tokio::select! {
        // A result that is there is told.
        biased;
        end = work => end,
        reason = ending.reason() => End::Failure(reason),
    };
    let outputs = [client.stdout.take(), client.stderr.take()];
    for mut output in outputs.into_iter().flatten() {
        output.finish().await;
    }
    let told = end.tell(client.form);
    let _ = client.error.send(told.into()).await;
    client.error.finish().await;
}

async fn run(client: &mut ClientStreams, session: Session, codes: ExitCodes) -> End {
    let Session { input, output } = session;
    let (stdin, resize) = (client.stdin.take(), client.resize.take());
    let listen = async {
        listen(stdin, resize, input).await;
        // The session's end is its output's to tell.
        pending().await
    };
    let speak = speak(&mut client.stdout, &mut client.stderr, output);
    let end = tokio::select! {
        end = speak => end,
        end = listen => end,
    };
    match (end, codes) {
        (End::Exit(_), ExitCodes::Ignored) => End::Success,
        (end, _) => end,
    }
}

/// Hands on what the client says, until it has nothing more to say.
async fn listen(mut stdin: Option<Input>, mut resize: Option<Input>, mut session: backend::Inputs) {
    let mut sizes = Resizes::default();
    while stdin.is_some() || resize.is_some() {
        tokio::select! {
            read = next(&mut stdin) => {
                let input = match read {
                    Some(bytes) => backend::Input::Stdin(bytes.into()),
                    None => backend::Input::StdinClosed,
                };
                if session.send(input).await.is_err() {
                    return;
                }
            }
            read = next(&mut resize) => {
                for (columns, rows) in sizes.read(&read.unwrap_or_default()) {
                    let input = backend::Input::Resize { columns, rows };
                    if session.send(input).await.is_err() {
                        return;
                    }
                }
            }
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
