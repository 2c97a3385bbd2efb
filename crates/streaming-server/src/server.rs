//! The listener, and the HTTP request that each connection begins with.

use crate::backend::Backend;
use crate::ending::Ending;
use crate::limits::Limits;
use crate::negotiate::{self, NegotiateError, Upgrade};
use crate::peer::Peer;
use crate::place::Place;
use crate::respond::{self, Answer};
use crate::session::{Agreed, Protocol};
use crate::spill::SpillSpace;
use crate::tokens::Tokens;
use crate::urls::StreamUrls;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

/// Most bytes of a request's line and headers.
const MAX_REQUEST: usize = 16 << 10;
/// Rest after connections could not be accepted: files are short, mostly.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Where and how a server listens.
#[derive(Debug, Clone)]
pub struct Config {
    /// Port 0: the kernel chooses.
    pub address: SocketAddr,
    /// `None`: without TLS.
    pub tls: Option<Arc<ServerConfig>>,
    /// Directory where waits what pods do not read and memory has no room for. `None`:
    /// nowhere, and a forwarded connection that is not read stalls its client's others.
    pub spill: Option<PathBuf>,
    /// What clients may take.
    pub limits: Limits,
}

impl Config {
    /// On a port of the loopback interface that the kernel chooses.
    pub fn loopback() -> Self {
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            tls: None,
            spill: None,
            limits: Limits::default(),
        }
    }
}

/// A server that listens.
pub struct StreamingServer {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    urls: StreamUrls,
    place: Place,
    end: watch::Sender<Option<String>>,
}

impl StreamingServer {
    /// Listens; connections are served by [`Self::serve`].
    ///
    /// # Errors
    /// If the address cannot be listened on.
    pub async fn bind(config: Config, backend: Arc<dyn Backend>) -> io::Result<Self> {
        let Config {
            address,
            tls,
            spill,
            limits,
        } = config;
        let (end, ending) = Ending::new();
        let listener = TcpListener::bind(address).await?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let urls = StreamUrls {
            base: format!("{scheme}://{}", listener.local_addr()?),
            tokens: Arc::new(Tokens::new(limits.tokens, limits.token_life)),
        };
        Ok(Self {
            listener,
            tls: tls.map(TlsAcceptor::from),
            urls,
            place: Place {
                backend,
                limits,
                spill: spill.map(|dir| Arc::new(SpillSpace::new(dir, limits.spilled))),
                ending,
            },
            end,
        })
    }

    /// What makes URLs of this server.
    pub fn urls(&self) -> StreamUrls {
        self.urls.clone()
    }

    /// Serves until `end` gives a reason to end. Each session then ends with that
    /// reason as its failure; this returns when the last client has heard it, or has
    /// not within its linger. Dropped, it takes all sessions along.
    pub async fn serve(self, end: impl Future<Output = String>) {
        let mut connections = JoinSet::new();
        let reason = tokio::select! {
            reason = end => reason,
            () = self.accept(&mut connections) => return,
        };
        let Self { listener, end, .. } = self;
        drop(listener);
        end.send_replace(Some(reason));
        while connections.join_next().await.is_some() {}
    }

    async fn accept(&self, connections: &mut JoinSet<()>) {
        let free = Arc::new(Semaphore::new(self.place.limits.connections));
        loop {
            while connections.try_join_next().is_some() {}
            let Ok(permit) = Arc::clone(&free).acquire_owned().await else {
                return;
            };
            let socket = match self.listener.accept().await {
                Ok((socket, _)) => socket,
                Err(error) => {
                    tracing::warn!(%error, "a streaming connection cannot be accepted");
                    sleep(ACCEPT_REST).await;
                    continue;
                }
            };
            let place = self.place.clone();
            let urls = self.urls.clone();
            let tls = self.tls.clone();
            connections.spawn(async move {
                if let Err(error) = connection(socket, tls, urls, place).await {
                    tracing::debug!(%error, "a streaming connection ended");
                }
                drop(permit);
            });
        }
    }
}

async fn connection(
    socket: TcpStream,
    tls: Option<TlsAcceptor>,
    urls: StreamUrls,
    place: Place,
) -> io::Result<()> {
    socket.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_keepalive(&socket, true)?;
    let peer = Peer::new(&socket)?;
    match tls {
        None => http(socket, &peer, &urls, &place).await,
        Some(tls) => {
            let wire = timeout(place.limits.request, tls.accept(socket)).await??;
            http(wire, &peer, &urls, &place).await
        }
    }
}

/// Answers requests until one is upgraded, and serves what it asked for.
async fn http<S>(wire: S, peer: &Peer, urls: &StreamUrls, place: &Place) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let agreed = Mutex::new(None);
    let service = hyper::service::service_fn(async |mut request| {
        let answer = match agree(&mut request, urls) {
            Ok((answer, session)) => {
                *agreed.lock().unwrap_or_else(PoisonError::into_inner) = Some(session);
                answer
            }
            Err(answer) => *answer,
        };
        Ok::<_, Infallible>(answer)
    });
    {
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(place.limits.request)
            .max_buf_size(MAX_REQUEST)
            .serve_connection(TokioIo::new(wire), service)
            .with_upgrades();
        let mut connection = pin!(connection);
        let served = tokio::select! {
            served = &mut connection => served,
            // Who has asked gets an answer; others have nothing to wait for.
            _ = place.ending.reason() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        served.map_err(io::Error::other)?;
    }
    let agreed = agreed.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some((upgrade, agreed)) = agreed {
        let upgraded = upgrade.await.map_err(io::Error::other)?;
        place.serve(agreed, TokioIo::new(upgraded), peer).await;
    }
    Ok(())
}

/// Whether a request is answered with a session, or else how.
fn agree(
    request: &mut hyper::Request<Incoming>,
    urls: &StreamUrls,
) -> Result<(Answer, (OnUpgrade, Agreed)), Box<Answer>> {
    if !matches!(*request.method(), Method::GET | Method::POST) {
        return Err(Box::new(respond::wrong_method()));
    }
    let nothing = || Box::new(respond::text(StatusCode::NOT_FOUND, "nothing is here"));
    let path = request.uri().path().trim_start_matches('/').to_owned();
    let (kind, token) = path.split_once('/').ok_or_else(nothing)?;
    let headers = request.headers();
    let refused = |error: NegotiateError| Box::new(respond::refused(&error));
    let (answer, transport, protocol) = match kind {
        "exec" | "attach" => {
            let upgrade = negotiate::command(headers).map_err(refused)?;
            parts(upgrade, Protocol::Command)
        }
        "portforward" => {
            let upgrade = negotiate::forward(headers).map_err(refused)?;
            parts(upgrade, Protocol::Forward)
        }
        _ => return Err(nothing()),
    };
    let wanted = urls.tokens.take(token, |wanted| wanted.path() == kind);
    let Some(wanted) = wanted else {
        let text = "this URL is not good, or not any more: each is good once and for a minute";
        return Err(Box::new(respond::text(StatusCode::NOT_FOUND, text)));
    };
    let agreed = Agreed {
        request: wanted,
        transport,
        protocol,
    };
    Ok((answer, (hyper::upgrade::on(request), agreed)))
}

fn parts<P>(
    upgrade: Upgrade<P>,
    protocol: impl FnOnce(P) -> Protocol,
) -> (Answer, negotiate::Transport, Protocol) {
    let answer = respond::switching(&upgrade);
    (answer, upgrade.transport, protocol(upgrade.protocol))
}
