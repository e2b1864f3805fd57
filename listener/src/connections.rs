//! How many connections there are, which of them are idle, and how long one
//! may keep an answer waiting.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::Request;
use axum::response::Response;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::answer::Answer;
use crate::auth::{Certified, Role};
use crate::ending::{End, Ending};

/// All that are open. At the cap, a new one takes the place of the one that
/// has been idle longest: slow heads and forgotten sessions keep nobody out.
pub(crate) struct Connections {
    most: usize,
    open: Mutex<HashMap<u64, Arc<State>>>,
    clock: AtomicU64,
    pub(crate) answered: Answered,
}

struct State {
    ending: Ending,
    /// Requests under way.
    busy: AtomicU64,
    /// When it last had one, by the clock of all.
    touched: AtomicU64,
}

/// How many requests were answered with which status.
#[derive(Clone, Debug)]
pub struct Answered(Arc<[AtomicU64; STATUSES]>);

/// From 0; HTTP's end below.
const STATUSES: usize = 600;

impl Default for Answered {
    fn default() -> Self {
        Self(Arc::new([const { AtomicU64::new(0) }; STATUSES]))
    }
}

impl Answered {
    fn count(&self, status: u16) {
        if let Some(count) = self.0.get(usize::from(status)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// By status, those that there were.
    pub fn by_status(&self) -> BTreeMap<u16, u64> {
        let counts = (0..).zip(self.0.iter().map(|count| count.load(Ordering::Relaxed)));
        counts.filter(|(_, count)| *count > 0).collect()
    }
}

/// One that is open; makes room when dropped.
pub(crate) struct Connection {
    all: Arc<Connections>,
    number: u64,
    state: Arc<State>,
}

impl Connections {
    pub(crate) fn new(most: usize) -> Self {
        Self { most: most.max(1), open: Mutex::default(), clock: AtomicU64::new(0), answered: Answered::default() }
    }

    /// None: all are at work.
    pub(crate) fn admit(self: &Arc<Self>) -> Option<Connection> {
        let number = self.clock.fetch_add(1, Ordering::Relaxed);
        let state =
            Arc::new(State { ending: Ending::default(), busy: AtomicU64::new(0), touched: AtomicU64::new(number) });
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= self.most {
            let idle = open.iter().filter(|(_, state)| state.busy.load(Ordering::Relaxed) == 0);
            let oldest = idle.min_by_key(|(_, state)| state.touched.load(Ordering::Relaxed)).map(|(number, _)| *number);
            open.remove(&oldest?)?.ending.ask(End::Now);
        }
        open.insert(number, state.clone());
        Some(Connection { all: self.clone(), number, state })
    }

    /// All are to end, each with the answer under way.
    pub(crate) fn end(&self) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.values().for_each(|state| state.ending.ask(End::Answered));
    }
}

impl Connection {
    pub(crate) fn ending(&self) -> &Ending {
        &self.state.ending
    }

    /// Passes requests on, and knows when one is under way.
    pub(crate) fn count<A: Answer>(&self, answers: A, certified: Option<Role>) -> Counted<A> {
        Counted { answers, certified: Certified(certified), all: self.all.clone(), state: self.state.clone() }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.all.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}

pub(crate) struct Counted<A> {
    answers: A,
    certified: Certified,
    all: Arc<Connections>,
    state: Arc<State>,
}

/// Ends with the answer, or with whoever waited for it.
struct Busy(Arc<State>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<A, B> hyper::service::Service<hyper::Request<B>> for Counted<A>
where
    A: Answer,
    B: hyper::body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = Response;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Self::Error>> + Send>>;

    fn call(&self, request: hyper::Request<B>) -> Self::Future {
        self.state.touched.store(self.all.clock.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        self.state.busy.fetch_add(1, Ordering::Relaxed);
        let busy = Busy(self.state.clone());
        let mut request: Request = request.map(axum::body::Body::new);
        request.extensions_mut().insert(self.certified);
        let (answers, all) = (self.answers.clone(), self.all.clone());
        Box::pin(async move {
            let answer = answers.answer(request).await;
            drop(busy);
            all.answered.count(answer.status().as_u16());
            Ok(answer)
        })
    }
}

/// A line whose other end must take what is written within a time.
pub(crate) struct Patient<S> {
    line: S,
    patience: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    pub(crate) fn new(line: S, patience: Duration) -> Self {
        Self { line, patience, waiting: None }
    }

    fn watch<T>(&mut self, context: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.waiting = None;
            return polled;
        }
        let patience = self.patience;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        match waiting.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.line).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.line).poll_write(context, bytes);
        self.watch(context, polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.line).poll_flush(context);
        self.watch(context, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.line).poll_shutdown(context);
        self.watch(context, polled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_new_connection_takes_the_place_of_the_one_idle_longest() {
        let all = Arc::new(Connections::new(2));
        let first = all.admit().unwrap();
        let second = all.admit().unwrap();
        first.state.busy.fetch_add(1, Ordering::Relaxed);
        let third = all.admit().unwrap();
        second.ending().now().await;
        assert!(futures_util::poll!(std::pin::pin!(first.ending().now())).is_pending(), "it is at work");
        third.state.busy.fetch_add(1, Ordering::Relaxed);
        assert!(all.admit().is_none(), "all are");
        drop(first);
        assert!(all.admit().is_some());
    }

    #[tokio::test]
    async fn whoever_does_not_read_is_left() {
        use tokio::io::AsyncWriteExt;
        let (near, _far) = tokio::io::duplex(16);
        let mut patient = Patient::new(near, Duration::from_millis(20));
        let error = patient.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
