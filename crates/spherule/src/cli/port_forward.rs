//! `spherule port-forward`: local ports that are a pod's.

use super::client::{Daemon, refused};
use super::output;
use crate::descriptors;
use anyhow::bail;
use pod_api::v1::port_forward_request::Kind as Up;
use pod_api::v1::port_forward_response::Kind as Down;
use pod_api::v1::{GetPodRequest, PortForwardRequest, PortForwardStart};
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

/// Most bytes in a message.
const PIECE: usize = 64 << 10;
/// Messages that wait for a slow daemon.
const BACKLOG: usize = 4;
/// Before a listener that failed is tried again.
const REST: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Local address to listen on; may be given several times
    #[arg(long, default_values = ["127.0.0.1", "::1"])]
    address: Vec<IpAddr>,
    /// Id, unique prefix of it, name, or namespace/name
    pod: String,
    /// LOCAL:POD, PORT for both, or :POD for any local port
    #[arg(required = true)]
    ports: Vec<Ports>,
}

/// A local port and the pod's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ports {
    /// 0: any.
    local: u16,
    pod: u16,
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (local, pod) = text.split_once(':').unwrap_or((text, text));
        let port = |text: &str| {
            let port = text.parse().ok().filter(|port| *port != 0);
            port.ok_or_else(|| format!("{text:?} is no port; use 1 to 65535"))
        };
        Ok(Self {
            local: if local.is_empty() { 0 } else { port(local)? },
            pod: port(pod)?,
        })
    }
}

/// Listens until it is ended.
pub(crate) async fn run(mut daemon: Daemon, args: Args) -> anyhow::Result<()> {
    descriptors::raise();
    let request = GetPodRequest {
        pod: args.pod.clone(),
    };
    let pod = daemon.pods.get_pod(request).await.map_err(refused)?;
    let daemon = Arc::new(daemon);
    // By id from here on: another pod may get the name.
    let pod = pod.into_inner().pod.unwrap_or_default().id;
    let mut listeners = JoinSet::new();
    for ports in args.ports {
        let mut local = ports.local;
        let mut failure = None;
        let mut any = false;
        for address in &args.address {
            match TcpListener::bind(SocketAddr::new(*address, local)).await {
                Ok(listener) => {
                    let address = listener.local_addr()?;
                    // The same one for every address.
                    local = address.port();
                    output::print(format!("Forwarding from {address} -> {}", ports.pod))?;
                    let (daemon, pod) = (Arc::clone(&daemon), pod.clone());
                    listeners.spawn(accept(listener, daemon, pod, ports.pod));
                    any = true;
                }
                Err(error) => {
                    failure = Some(
                        anyhow::Error::new(error)
                            .context(format!("cannot listen on port {local} of {address}")),
                    );
                }
            }
        }
        // A machine without IPv6 has the other address.
        if let Some(failure) = failure
            && !any
        {
            return Err(failure);
        }
    }
    match listeners.join_next().await {
        Some(ended) => match ended? {},
        None => bail!("nothing to listen on"),
    }
}

/// Each connection is the pod's own; one that fails is told of and that is all.
async fn accept(listener: TcpListener, daemon: Arc<Daemon>, pod: String, port: u16) -> Infallible {
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            // No descriptor is left, as a rule: connections that end give some back.
            Err(error) => {
                eprintln!("cannot accept a connection to port {port}: {error}");
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        let (daemon, pod) = (Arc::clone(&daemon), pod.clone());
        tokio::spawn(async move {
            if let Err(error) = forward(stream, &daemon, pod, port).await {
                eprintln!("connection from {from} to port {port}: {error:#}");
            }
        });
    }
}

async fn forward(stream: TcpStream, daemon: &Daemon, pod: String, port: u16) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let (sender, requests) = mpsc::channel(BACKLOG);
    let message = |kind| PortForwardRequest { kind: Some(kind) };
    let start = PortForwardStart {
        pod,
        port: port.into(),
    };
    sender.send(message(Up::Start(start))).await?;
    // One that stalls is to stall no other.
    let mut daemon = daemon.another().await?;
    let answers = daemon
        .pods
        .port_forward(ReceiverStream::new(requests))
        .await;
    let mut answers = answers.map_err(refused)?.into_inner();
    let (mut reader, mut writer) = stream.into_split();
    let up = async move {
        let mut bytes = vec![0; PIECE];
        // An error is as good as the end: the other way tells of it.
        while let Ok(read @ 1..) = reader.read(&mut bytes).await {
            let data = Up::Data(bytes[..read].to_vec());
            if sender.send(message(data)).await.is_err() {
                return;
            }
        }
    };
    let down = async move {
        while let Some(answer) = answers.message().await.map_err(refused)? {
            match answer.kind {
                Some(Down::Data(bytes)) => writer.write_all(&bytes).await?,
                Some(Down::Ended(_)) => writer.shutdown().await?,
                None => {}
            }
        }
        anyhow::Ok(())
    };
    let up = async {
        up.await;
        std::future::pending::<()>().await;
    };
    // The daemon ends the answers once both ways have ended.
    tokio::select! {
        down = down => down,
        () = up => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_one_or_two_numbers() {
        let ports = |text: &str| text.parse::<Ports>();
        let both = |local, pod| Ok(Ports { local, pod });
        assert_eq!(ports("8080:80"), both(8080, 80));
        assert_eq!(ports("80"), both(80, 80));
        assert_eq!(ports(":80"), both(0, 80));
        for wrong in ["", ":", "0", "80:", "80:0", "1:2:3", "65536", "http"] {
            assert!(ports(wrong).is_err(), "{wrong}");
        }
    }
}
