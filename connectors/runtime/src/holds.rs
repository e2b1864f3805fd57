//! A sink that stands still for a moment, so that its destination can be looked
//! at in exactly the state of a place in the log.
//!
//! Whoever wants to look says so first, and asks again and again; it is waited
//! for no longer than its last question is old. So nobody who went away, or
//! was killed, holds a sink up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// Who has not asked for so long has gone.
const LEASE: Duration = Duration::from_secs(5);
/// No sink stands still longer, whoever asks.
const LONGEST: Duration = Duration::from_secs(30);

/// All that is looked at, by the id of its place.
#[derive(Clone, Debug, Default)]
pub struct Holds {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    holds: Mutex<HashMap<String, Hold>>,
    released: Notify,
}

#[derive(Debug)]
struct Hold {
    asked: Instant,
    /// The sink's checkpoint there.
    reached: Option<u64>,
}

impl Holds {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Hold>> {
        self.shared.holds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody will look at the place of this id.
    pub fn expect(&self, id: &str) {
        let mut holds = self.lock();
        holds.retain(|_, hold| hold.asked.elapsed() < LEASE * 12);
        holds.insert(id.into(), Hold { asked: Instant::now(), reached: None });
    }

    /// The checkpoint with which the sink stands still there; None: not yet.
    pub fn reached(&self, id: &str) -> Option<u64> {
        let mut holds = self.lock();
        let hold = holds.get_mut(id)?;
        hold.asked = Instant::now();
        hold.reached
    }

    /// It was seen: the sink goes on.
    pub fn release(&self, id: &str) {
        self.lock().remove(id);
        self.shared.released.notify_waiters();
    }

    /// The sink has come to the place: returns when it may go on.
    pub(crate) async fn stand(&self, id: &str, checkpoint: u64) {
        let arrived = Instant::now();
        loop {
            let released = self.shared.released.notified();
            {
                let mut holds = self.lock();
                let Some(hold) = holds.get_mut(id) else { return };
                if hold.asked.elapsed() >= LEASE || arrived.elapsed() >= LONGEST {
                    holds.remove(id);
                    return;
                }
                hold.reached = Some(checkpoint);
            }
            tokio::select! {
                () = released => {}
                () = tokio::time::sleep(LEASE / 10) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sink_stands_still_until_it_was_seen_and_for_nobody_else() {
        let holds = Holds::default();
        holds.stand("nobody", 1).await;
        holds.expect("me");
        assert_eq!(holds.reached("me"), None);
        let standing = tokio::spawn({
            let holds = holds.clone();
            async move { holds.stand("me", 7).await }
        });
        while holds.reached("me").is_none() {
            tokio::task::yield_now().await;
        }
        assert_eq!(holds.reached("me"), Some(7));
        assert!(!standing.is_finished());
        holds.release("me");
        standing.await.expect("it does not panic");
        assert_eq!(holds.reached("me"), None);
    }
}
