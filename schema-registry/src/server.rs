//! Confluent's REST API over a store: who may connect, who may ask, and for how long.
//!
//! ```text
//!  accept ─► cap, TLS ─► HTTP/1.1 (header and write deadlines) ─► guard (Host, Accept, roles) ─► routes
//! ```
//!
//! HTTP/1.1 only: Confluent's clients speak it, and HTTP/2 would bring its
//! floods of resets and continuations along.

mod answer;
mod ask;
mod auth;
mod compatibility;
mod connections;
mod guard;
mod routes;
mod schemas;
mod settings;
mod subjects;
mod tags;
mod tls;

pub use auth::{Role, Token, User, hash_password};
pub use tls::TlsFiles;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use self::auth::Auth;
use self::connections::{Connections, Patient};
use crate::error::{Error, Result};
use crate::store::Store;

/// How a registry is served.
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
    /// Bytes of a body, at most.
    pub body: usize,
    /// Connections, at most.
    pub connections: usize,
}

/// For all bodies that are being read, together.
const BODIES: usize = 64 << 20;
/// Bodies are accounted for in pieces.
const PIECE: usize = 1 << 10;
/// For a request's head, its body, and each piece of an answer.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);
const BODY_PATIENCE: Duration = Duration::from_secs(20);
const WRITE_PATIENCE: Duration = Duration::from_secs(20);
/// After a stop, for what is under way.
const FAREWELL: Duration = Duration::from_secs(2);
const HEAD_BYTES: usize = 16 << 10;

/// What handlers share.
struct App {
    store: Arc<Store>,
    auth: Auth,
    /// Answers only to names of this machine.
    loopback: bool,
    body: usize,
    room: Arc<Semaphore>,
}

/// A server that listens.
pub struct Server {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    client_role: Option<Role>,
    serve: Serve,
}

impl Server {
    /// Listens; refused outside of loopback without encryption and authentication.
    pub async fn bind(serve: Serve) -> Result<Self> {
        let is_open = serve.users.is_empty()
            && serve.tokens.is_empty()
            && serve.tls.as_ref().is_none_or(|tls| tls.client_ca.is_none());
        if !serve.bind.ip().is_loopback() && (is_open || serve.tls.is_none()) {
            let what = format!("{} is not this machine alone: it needs TLS and users or tokens", serve.bind);
            return Err(Error::Settings(what));
        }
        let tls = serve.tls.as_ref().map(TlsFiles::acceptor).transpose()?;
        let listener = TcpListener::bind(serve.bind).await;
        let listener =
            listener.map_err(|error| Error::Settings(format!("could not listen on {}: {error}", serve.bind)))?;
        let client_role = serve.tls.as_ref().and_then(|tls| tls.client_ca.as_ref().map(|_| tls.client_role));
        Ok(Self { listener, tls, client_role, serve })
    }

    /// Where it listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    /// Answers until cancelled; then what is under way has a little time left.
    pub async fn run(self, store: Arc<Store>, stop: CancellationToken) {
        let Self { listener, tls, client_role, serve } = self;
        let app = Arc::new(App {
            store,
            auth: Auth::new(serve.users, serve.tokens, client_role.is_some()),
            loopback: serve.bind.ip().is_loopback(),
            body: serve.body,
            room: Arc::new(Semaphore::new(BODIES / PIECE)),
        });
        let router = routes::router(app);
        let connections = Arc::new(Connections::new(serve.connections));
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
            let (router, tls, stop) = (router.clone(), tls.clone(), stop.clone());
            open.spawn(async move {
                let _ = stream.set_nodelay(true);
                match tls {
                    None => one(stream, None, router, &connection, stop).await,
                    Some(tls) => {
                        let shaking = tokio::time::timeout(HEAD_PATIENCE, tls.accept(stream));
                        let shaken = tokio::select! {
                            shaken = shaking => shaken,
                            () = connection.closed() => return,
                        };
                        let Ok(Ok(stream)) = shaken else { return };
                        let known = stream.get_ref().1.peer_certificates().is_some_and(|chain| !chain.is_empty());
                        one(stream, client_role.filter(|_| known), router, &connection, stop).await;
                    }
                }
            });
        }
        drop(listener);
        let _ = tokio::time::timeout(FAREWELL, async { while open.join_next().await.is_some() {} }).await;
    }
}

/// One connection to its end.
async fn one<S>(
    stream: S,
    certified: Option<Role>,
    router: Router,
    connection: &connections::Connection,
    stop: CancellationToken,
) where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let counted = connection.count(router.layer(axum::Extension(auth::Certified(certified))));
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_PATIENCE).max_headers(100).max_header_size(HEAD_BYTES);
    let io = TokioIo::new(Patient::new(stream, WRITE_PATIENCE));
    let mut serving = std::pin::pin!(http.serve_connection(io, TowerToHyperService::new(counted)));
    tokio::select! {
        // What went wrong on the line is the client's to know.
        _ = serving.as_mut() => {}
        () = connection.closed() => {}
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(FAREWELL, serving).await;
        }
    }
}

/// Whether a Host header names this machine.
fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((inside, _)) => inside,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("bind", &self.serve.bind).finish_non_exhaustive()
    }
}

impl App {
    fn is_for_us(&self, host: Option<&str>) -> bool {
        !self.loopback || host.is_none_or(is_local)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_local() {
        for host in ["localhost", "LOCALHOST:8081", "127.0.0.1:8081", "127.9.9.9", "[::1]:8081", "[::1]"] {
            assert!(is_local(host), "{host}");
        }
        for host in
            ["evil.example", "localhost.evil.example:8081", "10.0.0.1:8081", "127.0.0.1.nip.io", "", "[fe80::1]"]
        {
            assert!(!is_local(host), "{host}");
        }
    }
}
