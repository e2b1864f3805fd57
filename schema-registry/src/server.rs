//! Confluent's REST API over a store, on an address that the listener guards.
//!
//! ```text
//!  listener ─► guard (Host, Accept, roles) ─► routes
//! ```

mod answer;
mod ask;
mod compatibility;
mod guard;
mod routes;
mod schemas;
mod settings;
mod subjects;
mod tags;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use listener::{Answered, Gate, Listener, Serve};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::store::Store;

/// For all bodies that are being read, together.
const BODIES: usize = 64 << 20;
/// Bodies are accounted for in pieces.
const PIECE: usize = 1 << 10;
/// For a request's body.
const BODY_PATIENCE: Duration = Duration::from_secs(20);

/// What handlers share.
struct App {
    store: Arc<Store>,
    gate: Arc<Gate>,
    body: usize,
    room: Arc<Semaphore>,
}

/// A server that listens.
#[derive(Debug)]
pub struct Server {
    listener: Listener,
    body: usize,
}

impl Server {
    /// Listens; a request's body has so many bytes at most.
    pub async fn bind(serve: Serve, body: usize) -> listener::Result<Self> {
        Ok(Self { listener: Listener::bind(serve).await?, body })
    }

    /// Where it listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.listener.address()
    }

    /// What was answered so far, by status.
    pub fn answered(&self) -> Answered {
        self.listener.answered()
    }

    /// Answers until cancelled; then what is under way has a little time left.
    pub async fn run(self, store: Arc<Store>, stop: CancellationToken) {
        let Self { listener, body } = self;
        let room = Arc::new(Semaphore::new(BODIES / PIECE));
        let app = Arc::new(App { store, gate: listener.gate(), body, room });
        listener.run(guard::Guarded::new(app), stop).await;
    }
}
