//! An address of ours that speaks HTTP: who may connect, who may ask, and for
//! how long. What is answered is its user's.
//!
//! ```text
//!  accept ─► cap, TLS ─► HTTP/1.1 (header and write deadlines) ─► answers, which ask the gate
//! ```
//!
//! HTTP/1.1 only: what asks here speaks it, and HTTP/2 would bring its floods
//! of resets and continuations along.

mod answer;
mod auth;
mod clock;
mod connections;
mod ending;
mod gate;
mod tls;

pub use answer::Answer;
pub use auth::{Role, Token, User, hash_password};
pub use connections::Answered;
pub use gate::{Gate, Refused};
pub use tls::TlsFiles;

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use self::clock::Clock;
use self::connections::{Connection, Connections, Patient};
use self::ending::End;

/// The settings cannot be used, or the address cannot be had.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

/// With the listener's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// How an address is served.
#[derive(Clone, Debug)]
pub struct Serve {
    /// Where it listens.
    pub bind: SocketAddr,
    /// Certificates, if the line is encrypted.
    pub tls: Option<TlsFiles>,
    /// With passwords.
    pub users: Vec<User>,
    /// With tokens.
    pub tokens: Vec<Token>,
    /// Connections, at most.
    pub connections: usize,
}

/// For a request's head, and each piece of an answer.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);
const WRITE_PATIENCE: Duration = Duration::from_secs(20);
/// After a stop, for what is under way.
const FAREWELL: Duration = Duration::from_secs(2);
const HEAD_BYTES: usize = 16 << 10;

/// An address that is ours.
pub struct Listener {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    client_role: Option<Role>,
    connections: Arc<Connections>,
    gate: Arc<Gate>,
}

impl Listener {
    /// Listens; refused outside of loopback without encryption and authentication.
    pub async fn bind(serve: Serve) -> Result<Self> {
        let is_open = serve.users.is_empty()
            && serve.tokens.is_empty()
            && serve.tls.as_ref().is_none_or(|tls| tls.client_ca.is_none());
        if !serve.bind.ip().is_loopback() && (is_open || serve.tls.is_none()) {
            let what = format!("{} is not this machine alone: it needs TLS and users or tokens", serve.bind);
            return Err(Error(what));
        }
        let tls = serve.tls.as_ref().map(TlsFiles::acceptor).transpose()?;
        let listener = TcpListener::bind(serve.bind).await;
        let listener = listener.map_err(|error| Error(format!("could not listen on {}: {error}", serve.bind)))?;
        let client_role = serve.tls.as_ref().and_then(|tls| tls.client_ca.as_ref().map(|_| tls.client_role));
        let connections = Arc::new(Connections::new(serve.connections));
        let gate = Arc::new(Gate::new(serve, client_role.is_some()));
        Ok(Self { listener, tls, client_role, connections, gate })
    }

    /// Where it listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    /// Who may ask, for whoever answers.
    pub fn gate(&self) -> Arc<Gate> {
        self.gate.clone()
    }

    /// What was answered so far, by status.
    pub fn answered(&self) -> Answered {
        self.connections.answered.clone()
    }

    /// Answers until cancelled; then what is under way has a little time left.
    pub async fn run(self, answers: impl Answer, stop: CancellationToken) {
        let Self { listener, tls, client_role, connections, .. } = self;
        let mut open = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                Some(_) = open.join_next(), if !open.is_empty() => continue,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else {
                // Out of descriptors, mostly: some will be free soon.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let Some(connection) = connections.admit() else { continue };
            let (answers, tls) = (answers.clone(), tls.clone());
            open.spawn(async move {
                let _ = stream.set_nodelay(true);
                match tls {
                    None => one(stream, None, answers, &connection).await,
                    Some(tls) => {
                        let shaking = tokio::time::timeout(HEAD_PATIENCE, tls.accept(stream));
                        let shaken = tokio::select! {
                            shaken = shaking => shaken,
                            () = connection.ending().now() => return,
                        };
                        let Ok(Ok(stream)) = shaken else { return };
                        let known = stream.get_ref().1.peer_certificates().is_some_and(|chain| !chain.is_empty());
                        one(stream, client_role.filter(|_| known), answers, &connection).await;
                    }
                }
            });
        }
        drop(listener);
        connections.end();
        let _ = tokio::time::timeout(FAREWELL, async { while open.join_next().await.is_some() {} }).await;
    }
}

/// One connection to its end.
async fn one<S>(stream: S, certified: Option<Role>, answers: impl Answer, connection: &Connection)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let counted = connection.count(answers, certified);
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(Clock::default()).header_read_timeout(HEAD_PATIENCE).max_headers(100).max_header_size(HEAD_BYTES);
    let io = TokioIo::new(Patient::new(stream, WRITE_PATIENCE));
    let mut serving = std::pin::pin!(http.serve_connection(io, counted));
    let mut last = false;
    std::future::poll_fn(|context| {
        match connection.ending().look(context) {
            Some(End::Now) => return Poll::Ready(()),
            Some(End::Answered) if !last => {
                last = true;
                serving.as_mut().graceful_shutdown();
            }
            _ => {}
        }
        // What went wrong on the line is the client's to know.
        serving.as_mut().poll(context).map(drop)
    })
    .await;
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").field("address", &self.address()).finish_non_exhaustive()
    }
}
