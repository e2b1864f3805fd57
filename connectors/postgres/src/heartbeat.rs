//! How far time has come: what lets a watermark move on while nothing is written.
//!
//! A commit has its time before its record is in the WAL, and the record is
//! there before it is flushed (with `synchronous_commit = off` seconds before).
//! So the time in a keepalive says nothing of commits before it. What does: at
//! T, which transactions hold the lock of their id, as each does from before it
//! takes its commit's time until after its record is written. When those have
//! ended, every commit up to T has its record below the position that the WAL
//! is written up to then; and when the stream has come to that, all of them
//! have been received.

use std::time::{Duration, Instant};

use connector::Result;
use storage::Micros;
use tokio_postgres::Client;

use crate::error::control_failed;
use crate::lsn::Lsn;

/// Who has been open for so long since T is not on its way from its commit's
/// time to its record, a few instructions further: it is still to commit.
const OPEN: Duration = Duration::from_secs(10);

/// Every commit up to a time lies below a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Covered {
    pub(crate) time: Micros,
    pub(crate) upto: Lsn,
}

/// The looks of a session.
#[derive(Debug, Default)]
pub(crate) struct Heartbeat {
    /// A time, and who was open then.
    waiting: Option<(Micros, Instant, Vec<String>)>,
}

impl Heartbeat {
    /// Looks once; a time if one is covered now.
    pub(crate) async fn beat(&mut self, client: &Client) -> Result<Option<Covered>> {
        let attempt = || "could not look how far commits are";
        // now() is taken before the locks are looked at, and the position after.
        let sql = "SELECT (extract(epoch FROM now()) * 1000000)::int8,
                          ARRAY(SELECT transactionid::text FROM pg_locks
                                 WHERE locktype = 'transactionid' AND mode = 'ExclusiveLock' AND granted)";
        let row = client.query_one(sql, &[]).await.map_err(|error| control_failed(error, attempt()))?;
        let (now, open): (i64, Vec<String>) = (row.get(0), row.get(1));
        let (time, since, before) = self.waiting.take().unwrap_or_else(|| (Micros(now), Instant::now(), open.clone()));
        if before.iter().any(|xid| open.contains(xid)) && since.elapsed() < OPEN {
            self.waiting = Some((time, since, before));
            return Ok(None);
        }
        // A standby writes no WAL, and knows nothing of the commits to come.
        let sql = "SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_insert_lsn()::text END,
                          current_setting('wal_block_size')::int8,
                          (SELECT setting::int8 FROM pg_settings WHERE name = 'wal_segment_size')";
        let row = client.query_one(sql, &[]).await.map_err(|error| control_failed(error, attempt()))?;
        let (block, segment): (i64, i64) = (row.get(1), row.get(2));
        let insert = row.get::<_, Option<&str>>(0).and_then(|text| text.parse().ok());
        let upto = insert.map(|insert| end_of_last(insert, block.max(1) as u64, segment.max(1) as u64));
        Ok(upto.map(|upto| Covered { time, upto }))
    }
}

/// The end of the last record, as the stream names it. The server names the
/// place of the next byte, which on a new page is behind the page's header.
fn end_of_last(insert: Lsn, block: u64, segment: u64) -> Lsn {
    let header = if insert.0 % segment < block { 40 } else { 24 };
    if insert.0 % block == header { Lsn(insert.0 - header) } else { insert }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_without_a_record_behind_it_is_not_waited_for() {
        let (block, segment) = (8192, 16 << 20);
        for (insert, end) in [
            (0x2A3_0018, 0x2A3_0000),
            (0x2A3_0020, 0x2A3_0020),
            (0x2A3_0028, 0x2A3_0028),
            (0x200_0028, 0x200_0000),
            (0x200_0018, 0x200_0018),
            (0x2A3_1F88, 0x2A3_1F88),
        ] {
            assert_eq!(end_of_last(Lsn(insert), block, segment), Lsn(end), "{insert:X}");
        }
    }
}
