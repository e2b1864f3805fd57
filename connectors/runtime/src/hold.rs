//! Held back and let go: what the gate does with tables and the quarantine
//! with keys.
//!
//! *To hold*: rows go into the log as `Kind::Pending`, in the transaction they
//! belong to, split off by `connector::Splitter`. A mark that is held is a
//! pending frame with the mark's payload. No sink sees either, retention keeps
//! them ([`storage::PENDING_KEY`], which the log sets with the first), and the
//! source's position moves on. Who holds keeps an entry in the log's state
//! under one of [`HOLDS`], whose JSON has the offset `from` which no frame of
//! the hold lies below.
//!
//! *To let go*: [`release`] reads the pending frames again and appends what a
//! [`Pick`] chooses at the head, in order, as data: each row with the position,
//! commit time and ordinal it had. All of it, with the state changes that end
//! the hold, is one transaction of the log: broken off anywhere, nothing of it
//! was done, and it is done again from the start. Memory stays bounded by what
//! the log takes at once. Only whoever appends to the log may call it, between
//! two transactions: `Ingest` (see `desk.rs` for how a command reaches it), or
//! a command that has opened a stopped daemon's log.
//!
//! ```text
//! struct OneKey { … }                          // which rows: by stream, by key, …
//! impl Sieve for OneKey { … Side::Hold for rows to let go, Side::Drop for others … }
//! impl Pick for OneKey { fn mark(&mut self, mark) -> Side { Side::Drop } }
//!
//! let mut state = vec![remove("fence/…")];
//! state.push(floor_without(&log.state(), &[b"fence/…"]));
//! release(&log, from, &mut pick, state).await?
//! ```
//!
//! What was let go or given up stays where it was as pending frames; it lies
//! below the `from` of every later hold of the same thing, so it never comes
//! again. `floor_without` moves `log/pending` on to the least `from` that is left.

use std::pin::pin;

use bytes::Bytes;
use connector::{Batch, Error, Halves, Mark, Result, Side, Sieve, Splitter, fault};
use futures_util::StreamExt;
use serde::Deserialize;
use storage::{EventLog, Frame, Kind, Log, LogBatch, Micros, Offset, PENDING_KEY, State, StateChange};

use crate::ingest::log_failed;

/// Entries of the log's state that hold something back begin so.
pub(crate) const HOLDS: [&str; 2] = ["gate/", "fence/"];

/// Chooses among what is held: `Side::Hold` is let go, all else stays.
pub(crate) trait Pick: Sieve {
    /// For a mark.
    fn mark(&mut self, mark: &Mark) -> Side;
}

/// What was let go, or is found to wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    pub(crate) events: u64,
    pub(crate) bytes: u64,
}

/// An entry's part that counts for retention.
#[derive(Deserialize)]
struct Floor {
    from: Option<u64>,
}

/// The change of `log/pending` when these entries of the state go.
pub(crate) fn floor_without(state: &State, gone: &[&[u8]]) -> StateChange {
    let entries = HOLDS.iter().flat_map(|prefix| state.prefix(prefix.as_bytes()));
    let left = entries.filter(|(key, _)| !gone.contains(key));
    let from = left.filter_map(|(_, value)| serde_json::from_slice::<Floor>(value).ok()?.from).min();
    StateChange { key: PENDING_KEY.into(), value: from.map(|from| from.to_string().into()) }
}

/// The least offset that entries under a prefix hold.
pub(crate) fn least_of(state: &State, prefix: &str) -> Option<u64> {
    state.prefix(prefix.as_bytes()).filter_map(|(_, value)| serde_json::from_slice::<Floor>(value).ok()?.from).min()
}

/// Appends again at the head what `pick` chooses of the pending frames from
/// `from` on, as one transaction with `state`. Durable when it returns; after
/// an error, or when dropped before, the log's `abort` makes void what was
/// appended.
///
/// `sift` sees every batch before it is appended, as it would one that was
/// captured now: the quarantine may keep some of its rows.
pub(crate) async fn release(
    log: &Log,
    from: Offset,
    pick: &mut impl Pick,
    state: Vec<StateChange>,
    mut sift: impl FnMut(LogBatch) -> Result<(LogBatch, Option<LogBatch>)>,
) -> Result<Amount> {
    let mut amount = Amount::default();
    let mut splitter = Splitter::default();
    // One behind: the last one ends the transaction, and which it is shows at the end.
    let mut last = batch(Kind::Control, Bytes::new(), 0, Micros(i64::MIN), state);
    let end = boundary(log).await?;
    let mut frames = pin!(log.read(from));
    let mut next = from;
    while next < end {
        let frame = match frames.next().await {
            Some(frame) => frame.map_err(unreadable)?,
            None => return Err(Error::retry("the log's reader has ended")),
        };
        next = frame.offsets.end;
        let time = frame.event_time;
        let Some((kind, payload, records)) = chosen(frame, pick, &mut splitter)? else { continue };
        amount.events += u64::from(records);
        amount.bytes += payload.len() as u64;
        let whole = batch(kind, payload, records, time, Vec::new());
        let before = std::mem::replace(&mut last, whole);
        let (passes, waits) = sift(LogBatch { ends_transaction: false, ..before })?;
        for batch in [Some(passes), waits].into_iter().flatten() {
            log.append(batch).await.map_err(log_failed)?;
        }
        fault::point("gate-release");
    }
    let (mut last, waits) = sift(last)?;
    if let Some(waits) = waits {
        log.append(last).await.map_err(log_failed)?;
        last = waits;
    }
    log.append(last).await.map_err(log_failed)?.await.map_err(log_failed)?;
    Ok(amount)
}

/// Counts what `pick` chooses between two offsets.
pub(crate) async fn count(log: &Log, from: Offset, pick: &mut impl Pick) -> Result<Amount> {
    let mut amount = Amount::default();
    let mut splitter = Splitter::default();
    let end = boundary(log).await?;
    let mut frames = pin!(log.read(from));
    let mut next = from;
    while next < end {
        let Some(frame) = frames.next().await else { break };
        let frame = frame.map_err(unreadable)?;
        next = frame.offsets.end;
        if let Some((_, payload, records)) = chosen(frame, pick, &mut splitter)? {
            amount.events += u64::from(records);
            amount.bytes += payload.len() as u64;
        }
    }
    Ok(amount)
}

fn chosen(frame: Frame, pick: &mut impl Pick, splitter: &mut Splitter) -> Result<Option<(Kind, Bytes, u32)>> {
    if frame.kind != Kind::Pending {
        return Ok(None);
    }
    if let Some(mark) = Mark::from_payload(&frame.payload) {
        let records = (frame.offsets.end.0 - frame.offsets.start.0) as u32;
        return Ok((pick.mark(&mark) == Side::Hold).then_some((Kind::Control, frame.payload, records)));
    }
    let range = frame.offsets;
    let Halves { held, .. } = splitter.split(&Batch::new(frame), pick).map_err(|error| {
        Error::halt(format!("the pending batch at offsets {} to {} cannot be read", range.start, range.end))
            .because(error)
            .hint("run `highwater log check`")
    })?;
    Ok(held.map(|(payload, records)| (Kind::Data, payload, records)))
}

/// Ends what was appended by an empty frame, which a reader is certain to come
/// to: behind an aborted transaction the end is a hole.
async fn boundary(log: &Log) -> Result<Offset> {
    let empty = batch(Kind::Control, Bytes::new(), 0, Micros(i64::MIN), Vec::new());
    let appended = log.append(empty).await.map_err(log_failed)?.await.map_err(log_failed)?;
    Ok(appended.offsets.end)
}

/// A transaction of one batch, without a position: the source's does not move.
pub(crate) fn batch(kind: Kind, payload: Bytes, records: u32, time: Micros, state: Vec<StateChange>) -> LogBatch {
    LogBatch { kind, position: None, records, event_time: time, payload, state, ends_transaction: true }
}

/// Puts an entry into the state.
pub(crate) fn put(key: String, value: &impl serde::Serialize) -> StateChange {
    let value = serde_json::to_vec(value).expect("an entry serialises");
    StateChange { key: key.into_bytes().into(), value: Some(value.into()) }
}

/// Takes one out.
pub(crate) fn remove(key: String) -> StateChange {
    StateChange { key: key.into_bytes().into(), value: None }
}

fn unreadable(error: storage::Error) -> Error {
    Error::halt("could not read the log").because(error).hint("run `highwater log check`")
}

#[cfg(test)]
mod tests;
