//! A process that writes to a destination, and what befalls it there.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::watch;

/// What befalls a process at an operation on its destination, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The operation fails, and later ones do not.
    Fails(usize, When),
    /// The process ends there: that operation and all later ones fail.
    Dies(usize, When),
    /// The process stands still there until it is let go.
    Stops(usize, When),
}

/// On which side of its taking effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// It has not taken effect.
    Before,
    /// It has, and nobody hears of it.
    After,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stand {
    Runs,
    Stopped,
    Free,
}

/// A destination asks it around each of a process's operations.
#[derive(Debug)]
pub struct Process {
    fate: Option<Fate>,
    passed: AtomicUsize,
    stand: watch::Sender<Stand>,
}

impl Process {
    /// With a fate, or none.
    pub fn new(fate: Option<Fate>) -> Self {
        Self { fate, passed: AtomicUsize::new(0), stand: watch::Sender::new(Stand::Runs) }
    }

    /// An operation, as far as the fate lets it; `lost` is what the process
    /// sees of one that failed or whose answer did not come.
    pub async fn operation<T, E>(
        &self,
        operation: impl Future<Output = Result<T, E>>,
        lost: impl Fn() -> E,
    ) -> Result<T, E> {
        let now = self.passed.fetch_add(1, Ordering::SeqCst) + 1;
        match self.fate {
            Some(Fate::Dies(nth, _)) if now > nth => Err(lost()),
            Some(Fate::Fails(nth, When::Before) | Fate::Dies(nth, When::Before)) if now == nth => Err(lost()),
            Some(Fate::Fails(nth, When::After) | Fate::Dies(nth, When::After)) if now == nth => {
                let _ = operation.await;
                Err(lost())
            }
            Some(Fate::Stops(nth, When::Before)) if now == nth => {
                self.stop().await;
                operation.await
            }
            Some(Fate::Stops(nth, When::After)) if now == nth => {
                let answer = operation.await;
                self.stop().await;
                answer
            }
            _ => operation.await,
        }
    }

    async fn stop(&self) {
        self.stand.send_replace(Stand::Stopped);
        let mut stand = self.stand.subscribe();
        let _ = stand.wait_for(|stand| *stand == Stand::Free).await;
    }

    /// Waits until it stands still; false if it was let go before.
    pub(crate) async fn stopped(&self) -> bool {
        let mut stand = self.stand.subscribe();
        stand.wait_for(|stand| *stand != Stand::Runs).await.is_ok_and(|stand| *stand == Stand::Stopped)
    }

    /// Lets it go on.
    pub(crate) fn release(&self) {
        self.stand.send_replace(Stand::Free);
    }

    /// Whether its fate has befallen it.
    pub(crate) fn met(&self) -> bool {
        let passed = self.passed.load(Ordering::SeqCst);
        self.fate.is_some_and(|fate| match fate {
            Fate::Fails(nth, _) | Fate::Dies(nth, _) | Fate::Stops(nth, _) => passed >= nth,
        })
    }
}
