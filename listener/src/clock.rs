//! Deadlines of one connection, of which nearly none is ever reached. A timer of
//! the runtime is set and taken away under a lock that all connections share;
//! this one is set once in the time that a deadline has, however many requests
//! come: when it goes off too early for the deadline of then, it is set again.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};

/// Of one connection, which waits for one deadline at a time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clock(Arc<Mutex<Option<Pin<Box<tokio::time::Sleep>>>>>);

/// Until a deadline.
struct Until {
    deadline: Instant,
    clock: Clock,
}

impl Timer for Clock {
    fn sleep(&self, time: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(Instant::now() + time)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(Until { deadline, clock: self.clone() })
    }

    fn reset(&self, sleep: &mut Pin<Box<dyn Sleep>>, deadline: Instant) {
        *sleep = self.sleep_until(deadline);
    }
}

impl Sleep for Until {}

impl Future for Until {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let deadline = tokio::time::Instant::from_std(self.deadline);
        let mut set = self.clock.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sleep = set.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        while sleep.as_mut().poll(context).is_ready() {
            if tokio::time::Instant::now() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_deadline_is_kept_whichever_was_set_before() {
        let (clock, began) = (Clock::default(), Instant::now());
        let after = |millis| began + Duration::from_millis(millis);
        let mut given_up = clock.sleep_until(after(20));
        assert!(futures_util::poll!(&mut given_up).is_pending());
        drop(given_up);
        clock.sleep_until(after(60)).await;
        assert!(Instant::now() >= after(60), "a later one");
        let mut later = clock.sleep_until(after(3_600_000));
        assert!(futures_util::poll!(&mut later).is_pending());
        let sooner = tokio::time::timeout(Duration::from_secs(60), clock.sleep_until(after(100)));
        sooner.await.expect("a sooner one");
        assert!(Instant::now() >= after(100));
        assert!(futures_util::poll!(&mut later).is_pending());
    }
}
