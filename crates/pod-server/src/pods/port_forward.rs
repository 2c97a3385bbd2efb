//! PortForward: one TCP connection of a pod as a pair of streams, each way with an
//! end of its own.

use super::{Answers, Pods};
use crate::status;
use pod_api::v1::port_forward_request::Kind as In;
use pod_api::v1::port_forward_response::Kind as Out;
use pod_api::v1::{PortForwardRequest, PortForwardResponse};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// Most bytes in a message.
const PIECE: usize = 64 << 10;
/// Messages that wait for a slow caller.
const BACKLOG: usize = 4;

type Answer = Result<PortForwardResponse, Status>;

/// Connects; the answers are the connection until both ways have ended.
pub(super) async fn open(
    pods: &Pods,
    mut requests: Streaming<PortForwardRequest>,
) -> Result<Answers<PortForwardResponse>, Status> {
    let first = requests.message().await?.and_then(|request| request.kind);
    let Some(In::Start(start)) = first else {
        return Err(Status::invalid_argument("start: must be the first message"));
    };
    let port = u16::try_from(start.port).unwrap_or(0);
    if port == 0 {
        return Err(Status::invalid_argument("start.port: must be 1 to 65535"));
    }
    let sandbox = pods.sandbox(&start.pod)?;
    let stream = pods.sandboxes.port_forward(&sandbox, port).await;
    let stream = stream.map_err(|e| status::of_sandbox(&e))?;
    let (reader, writer) = stream.into_split();
    let (sender, answers) = mpsc::channel(BACKLOG);
    tokio::spawn(async move {
        let both = async { tokio::join!(up(requests, writer), down(reader, &sender)) };
        tokio::select! {
            _ = both => {}
            // The caller is gone.
            () = sender.closed() => {}
        }
    });
    Ok(Box::pin(ReceiverStream::new(answers)))
}

/// From the caller to the pod.
async fn up(mut requests: Streaming<PortForwardRequest>, mut pod: OwnedWriteHalf) {
    while let Ok(Some(request)) = requests.message().await {
        if let Some(In::Data(bytes)) = request.kind
            && pod.write_all(&bytes).await.is_err()
        {
            return;
        }
    }
    let _ = pod.shutdown().await;
}

/// From the pod to the caller.
async fn down(mut pod: OwnedReadHalf, answers: &mpsc::Sender<Answer>) {
    let mut bytes = vec![0; PIECE];
    loop {
        let kind = match pod.read(&mut bytes).await {
            Ok(0) => Out::Ended(true),
            Ok(read) => Out::Data(bytes[..read].to_vec()),
            Err(error) => {
                let broken = Status::unavailable(format!("the connection broke: {error}"));
                let _ = answers.send(Err(broken)).await;
                return;
            }
        };
        let over = matches!(kind, Out::Ended(_));
        let answer = PortForwardResponse { kind: Some(kind) };
        if answers.send(Ok(answer)).await.is_err() || over {
            return;
        }
    }
}
