//! How fast it may go, and how far it is.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Rows a second of one side.
#[derive(Debug)]
pub struct Pace {
    rows_per_second: u64,
    begun: Instant,
    rows: u64,
}

impl Pace {
    /// 0: as fast as it goes.
    pub fn new(rows_per_second: u64) -> Self {
        Self { rows_per_second, begun: Instant::now(), rows: 0 }
    }

    /// Blocks that one statement reads: a slow pace is not kept by long pauses
    /// between large pieces.
    pub(crate) fn blocks(&self) -> u64 {
        const WHOLE: u64 = 4096;
        const ROWS_OF_A_BLOCK: u64 = 64;
        match self.rows_per_second {
            0 => WHOLE,
            rows => (rows / ROWS_OF_A_BLOCK / 2).clamp(8, WHOLE),
        }
    }

    /// So many rows were read: waits until they may have been.
    pub(crate) async fn keep(&mut self, rows: u64) {
        if self.rows_per_second == 0 {
            return;
        }
        self.rows += rows;
        let due = Duration::from_secs_f64(self.rows as f64 / self.rows_per_second as f64);
        let passed = self.begun.elapsed();
        if due > passed {
            tokio::time::sleep(due - passed).await;
        } else if passed - due > Duration::from_secs(1) {
            // What was not used is not saved up.
            (self.begun, self.rows) = (Instant::now(), 0);
        }
    }
}

/// For whoever looks on.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    total: AtomicU64,
    rows: AtomicU64,
}

impl Progress {
    /// Blocks of both sides that will be read at least.
    pub fn expect(&self, blocks: u64) {
        self.total.fetch_add(blocks, Ordering::Relaxed);
    }

    /// Read.
    pub fn read(&self, blocks: u64, rows: u64) {
        self.done.fetch_add(blocks, Ordering::Relaxed);
        self.rows.fetch_add(rows, Ordering::Relaxed);
    }

    /// Blocks done, blocks in all, rows.
    pub fn now(&self) -> (u64, u64, u64) {
        let get = |number: &AtomicU64| number.load(Ordering::Relaxed);
        (get(&self.done), get(&self.total).max(get(&self.done)), get(&self.rows))
    }
}
