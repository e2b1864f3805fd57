//! How a connection is told to end. It looks each time it is woken, which is
//! twice a request: without a lock, and beside nobody else's list of waiters.

use std::future::poll_fn;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

/// How it is to end; a greater one counts before a lesser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With the answer under way.
    Answered = 1,
    /// At once.
    Now = 2,
}

#[derive(Debug, Default)]
pub(crate) struct Ending {
    asked: AtomicU8,
    waker: AtomicWaker,
}

impl Ending {
    pub(crate) fn ask(&self, end: End) {
        self.asked.fetch_max(end as u8, Ordering::Release);
        self.waker.wake();
    }

    /// What was asked for; else whoever looks is woken when something is. One looks.
    pub(crate) fn look(&self, context: &Context<'_>) -> Option<End> {
        self.waker.register(context.waker());
        match self.asked.load(Ordering::Acquire) {
            0 => None,
            1 => Some(End::Answered),
            _ => Some(End::Now),
        }
    }

    /// Until it is to end at once.
    pub(crate) async fn now(&self) {
        poll_fn(|context| if self.look(context) == Some(End::Now) { Poll::Ready(()) } else { Poll::Pending }).await;
    }
}
