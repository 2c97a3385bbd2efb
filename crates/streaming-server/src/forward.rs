//! Port-forward: connections of the back end on pairs of a client's streams, one
//! for data and one for what went wrong.

use crate::backend::{Backend, Connection, Failure};
use crate::backlog::Break;
use crate::ending::Ending;
use crate::input::Input;
use crate::limits::Limits;
use crate::output::{Gone, Output};
use crate::spdy::{NewStream, Reset};
use bytes::BytesMut;
use std::collections::HashMap;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

/// Most bytes read from a connection at once.
const READ: usize = 32 << 10;

/// Where connections go.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) sandbox: String,
    pub(crate) limits: Limits,
    pub(crate) ending: Ending,
}

/// The part that a new stream has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Data,
    Error,
}

/// One stream of a pair, and until when the other one may come.
struct Half {
    part: Part,
    port: u16,
    input: Input,
    output: Output,
    until: Instant,
}

/// Serves the pairs that a SPDY client opens, until it is gone or the server ends.
pub(crate) async fn serve(target: Target, mut new: mpsc::Receiver<NewStream>) {
    let mut halves: HashMap<String, Half> = HashMap::new();
    let mut running = JoinSet::new();
    let reason = loop {
        let first = halves.values().map(|half| half.until).min();
        tokio::select! {
            stream = new.recv() => {
                let Some(stream) = stream else { return };
                let until = Instant::now() + target.limits.stream_creation;
                if let Some(pair) = pair(&mut halves, stream, until).await {
                    running.spawn(forward(target.clone(), pair));
                }
            }
            Some(_) = running.join_next() => {}
            () = expiry(first) => {
                let text = "timed out waiting for the data stream of this request";
                let now = Instant::now();
                give_up(&mut halves, text, |half| half.until <= now).await;
            }
            reason = target.ending.reason() => break reason,
        }
    };
    give_up(&mut halves, &reason, |_| true).await;
    // Each of them tells it, too.
    while running.join_next().await.is_some() {}
}

async fn expiry(first: Option<Instant>) {
    match first {
        Some(until) => sleep_until(until).await,
        None => pending().await,
    }
}

/// Ends streams whose other half has not come.
async fn give_up(halves: &mut HashMap<String, Half>, text: &str, which: impl Fn(&Half) -> bool) {
    for (_, mut half) in halves.extract_if(|_, half| which(half)) {
        if half.part == Part::Error {
            let _ = half.output.send(text.to_owned().into()).await;
        }
        half.output.end().await;
    }
}

/// A port with its data stream and its error stream.
pub(crate) struct Port {
    pub(crate) port: u16,
    pub(crate) input: Input,
    pub(crate) data: Output,
    pub(crate) error: Output,
}

/// Takes a new stream, and returns the pair that it completes.
async fn pair(
    halves: &mut HashMap<String, Half>,
    stream: NewStream,
    until: Instant,
) -> Option<Port> {
    let Some((part, port, request)) = describe(&stream) else {
        stream.refuse(Reset::Protocol).await;
        return None;
    };
    let clashes = |half: &Half| half.part == part || half.port != port;
    if halves.get(&request).is_some_and(clashes) {
        stream.refuse(Reset::Protocol).await;
        return None;
    }
    let (input, output) = stream.accept().await;
    let half = Half {
        part,
        port,
        input,
        output,
        until,
    };
    let Some(other) = halves.remove(&request) else {
        halves.insert(request, half);
        return None;
    };
    let (data, error) = match part {
        Part::Data => (half, other),
        Part::Error => (other, half),
    };
    Some(Port {
        port,
        input: data.input,
        data: data.output,
        error: error.output,
    })
}

/// What a stream's headers say. A client that names no request opens the error
/// stream first and the data stream next.
fn describe(stream: &NewStream) -> Option<(Part, u16, String)> {
    let headers = &stream.headers;
    let port = headers.get("port")?.parse().ok().filter(|&port| port > 0)?;
    let (part, first) = match headers.get("streamtype")? {
        "data" => (Part::Data, stream.number().checked_sub(2)?),
        "error" => (Part::Error, stream.number()),
        _ => return None,
    };
    let request = match headers.get("requestid") {
        Some(id) if !id.is_empty() => id.to_owned(),
        _ => format!("stream {first}"),
    };
    Some((part, port, request))
}

/// Serves the ports of a WebSocket client, each on its channels, until all their
/// connections have ended.
pub(crate) async fn serve_ports(target: Target, ports: Vec<Port>) {
    let mut running = JoinSet::new();
    for mut port in ports {
        let target = target.clone();
        running.spawn(async move {
            let number = port.port.to_le_bytes().to_vec();
            for output in [&mut port.data, &mut port.error] {
                if output.send(number.clone().into()).await.is_err() {
                    return;
                }
            }
            forward(target, port).await;
        });
    }
    while running.join_next().await.is_some() {}
}

/// Serves one connection to its end or the server's; what went wrong is told.
async fn forward(target: Target, port: Port) {
    let Port {
        port,
        mut input,
        mut data,
        mut error,
    } = port;
    let Target {
        backend,
        sandbox,
        limits,
        ending,
    } = target;
    let broken = broken(input.broken(), limits.linger);
    let work = async {
        let connection = backend.port_forward(&sandbox, port).await?;
        copy(connection, &mut input, &mut data).await;
        Ok::<_, Failure>(())
    };
    let failure = tokio::select! {
        biased;
        served = work => served.err().map(|failure| failure.0),
        reason = ending.reason() => Some(reason),
        why = broken => match why {
            Break::Reset => None,
            Break::Stalled(bytes) => {
                tracing::warn!(sandbox, port, bytes, "a forwarded connection is ended: its pod \
                    takes nothing of what waits, and the client's others wait behind it");
                // A SPDY client would take a word for the end of all its connections.
                matches!(error, Output::WebSocket(_))
                    .then(|| format!("the pod takes nothing, and {bytes} bytes wait for it"))
            }
        }
    };
    drop(input);
    if let Some(failure) = failure {
        tracing::info!(sandbox, port, failure, "port not forwarded");
        let text = format!("error forwarding port {port} to pod {sandbox}: {failure}");
        let _ = error.send(text.into()).await;
    }
    data.end().await;
    error.end().await;
}

/// Returns when a connection is not to go on, whatever its pod does.
async fn broken(why: impl Future<Output = Break>, linger: Duration) -> Break {
    let why = why.await;
    if why == Break::Reset {
        sleep(linger).await;
    }
    why
}

/// Copies both ways until both have ended. That the pod breaks a connection is no
/// error of the forwarding: clients would take it for the end of all connections.
async fn copy(connection: Box<dyn Connection>, input: &mut Input, output: &mut Output) {
    let (mut read, mut write) = tokio::io::split(connection);
    let up = async {
        loop {
            match input.next().await {
                Ok(Some(bytes)) if write.write_all(&bytes).await.is_err() => return Ok(()),
                Ok(Some(_)) => {}
                Ok(None) => {
                    let _ = write.shutdown().await;
                    return Ok(());
                }
                Err(Gone) => return Err(Gone),
            }
        }
    };
    // A WebSocket client cannot say that it has no more to say.
    let one_way = matches!(output, Output::WebSocket(_));
    let down = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(READ);
            match read.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(_) => output.send(buffer.split().freeze()).await?,
            }
        }
        output.finish().await;
        if one_way { Err(Gone) } else { Ok(()) }
    };
    let _ = tokio::try_join!(up, down);
}
