//! What is held: a pending frame an entry of the log's state.

use std::collections::BTreeMap;

use connector::{Error, Result};
use serde::{Deserialize, Serialize};
use storage::{State, StateChange};

/// Entries of the state begin so.
pub(crate) const HELD: &str = "fence/";
const PARKED: &str = "quarantine/parked/";
const DISCARDED: &str = "quarantine/discarded";
/// Records of what was discarded are kept so many.
const LAST: usize = 100;

/// What is left of a pending frame.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeldFrame {
    /// Its offset.
    pub(crate) from: u64,
    /// Rows that wait: from, up to.
    pub(crate) left: Vec<(u32, u32)>,
    /// Rows that broke a rule: from, up to, and an index into `reasons`.
    pub(crate) bad: Vec<(u32, u32, u32)>,
    pub(crate) reasons: Vec<String>,
    /// Whose its rows are, in order: stream, rows, and bytes of those that wait.
    pub(crate) runs: Vec<(String, u32, u64)>,
    /// Rows in it, as far as they were counted.
    #[serde(skip)]
    counted: u32,
}

impl HeldFrame {
    pub(crate) fn new(from: u64) -> Self {
        Self { from, ..Self::default() }
    }

    /// A row of a stream comes next in the frame, whether it waits or not.
    pub(crate) fn count(&mut self, stream: &str) {
        self.counted += 1;
        match self.runs.last_mut() {
            Some(run) if run.0 == stream => run.1 += 1,
            _ => self.runs.push((stream.into(), 1, 0)),
        }
    }

    /// The row that was counted last waits.
    pub(crate) fn wait(&mut self, bytes: u64, reason: Option<&str>) {
        let row = self.counted.saturating_sub(1);
        match self.left.last_mut() {
            Some(last) if last.1 == row => last.1 += 1,
            _ => self.left.push((row, row + 1)),
        }
        if let Some(run) = self.runs.last_mut() {
            run.2 += bytes;
        }
        if let Some(reason) = reason {
            self.blame(row, reason);
        }
    }

    fn blame(&mut self, row: u32, reason: &str) {
        let index = self.reasons.iter().position(|known| known == reason).unwrap_or_else(|| {
            self.reasons.push(reason.into());
            self.reasons.len() - 1
        }) as u32;
        match self.bad.last_mut() {
            Some(last) if last.1 == row && last.2 == index => last.1 += 1,
            _ => self.bad.push((row, row + 1, index)),
        }
    }

    /// Why a row is here itself.
    pub(crate) fn reason(&self, row: u32) -> Option<&str> {
        let behind = self.bad.partition_point(|(from, ..)| *from <= row);
        let (_, upto, reason) = self.bad.get(behind.checked_sub(1)?)?;
        (row < *upto).then(|| self.reasons.get(*reason as usize).map(String::as_str)).flatten()
    }

    pub(crate) fn waits(&self, row: u32) -> bool {
        let behind = self.left.partition_point(|(from, _)| *from <= row);
        behind.checked_sub(1).and_then(|last| self.left.get(last)).is_some_and(|(_, upto)| row < *upto)
    }

    /// Whether the log's state must learn of what has become of it.
    pub(crate) fn differs(&self, before: &Self) -> bool {
        (&self.left, &self.bad, &self.reasons) != (&before.left, &before.bad, &before.reasons)
    }

    /// Rows of a stream wait no more; how many.
    pub(crate) fn forget(&mut self, stream: &str) -> u64 {
        let (mut row, mut gone) = (0, 0);
        let runs = self.runs.clone();
        for (i, (of, count, _)) in runs.iter().enumerate() {
            if of == stream {
                gone += self.cut(row, row + count);
                self.runs[i].2 = 0;
            }
            row += count;
        }
        gone
    }

    fn cut(&mut self, from: u32, upto: u32) -> u64 {
        let before = self.rows();
        let cut = self.left.iter().flat_map(|&(a, b)| [(a, b.min(from)), (a.max(upto), b)]);
        self.left = cut.filter(|(a, b)| a < b).collect();
        before - self.rows()
    }

    pub(crate) fn rows(&self) -> u64 {
        self.left.iter().map(|(from, upto)| u64::from(upto - from)).sum()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.runs.iter().map(|(_, _, bytes)| bytes).sum()
    }

    pub(crate) fn key(from: u64) -> String {
        format!("{HELD}{from:020}")
    }

    /// The entry as it is now; none where nothing waits any more.
    pub(crate) fn change(&self) -> StateChange {
        let value = (!self.left.is_empty()).then(|| serde_json::to_vec(self).expect("it serialises").into());
        StateChange { key: Self::key(self.from).into_bytes().into(), value }
    }
}

/// What was given up, for whoever asks later.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discarded {
    /// Rows in all.
    pub rows: u64,
    /// The last of them, the newest at the end.
    pub last: Vec<Discard>,
}

/// Rows given up at one time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discard {
    /// Microseconds since the Unix epoch.
    pub time: i64,
    /// Of which stream.
    pub stream: String,
    /// How many.
    pub rows: u64,
    /// `asked`, `truncate`, or `new generation`.
    pub cause: String,
}

impl Discarded {
    /// As a log's state tells.
    pub fn of(state: &State) -> Self {
        state.get(DISCARDED.as_bytes()).and_then(|value| serde_json::from_slice(value).ok()).unwrap_or_default()
    }

    pub(crate) fn add(&mut self, time: i64, stream: &str, rows: u64, cause: &str) -> StateChange {
        self.rows += rows;
        self.last.push(Discard { time, stream: stream.into(), rows, cause: cause.into() });
        if self.last.len() > LAST {
            self.last.drain(..self.last.len() - LAST);
        }
        let value = serde_json::to_vec(self).expect("it serialises");
        StateChange { key: DISCARDED.as_bytes().into(), value: Some(value.into()) }
    }
}

/// The frames that a log's state tells of, by offset.
pub(crate) fn frames_of(state: &State) -> Result<BTreeMap<u64, HeldFrame>> {
    let read = |(_, value)| {
        let frame: HeldFrame = serde_json::from_slice(value).map_err(|error| {
            Error::halt("could not read what the log's state tells of the quarantine")
                .because(error)
                .hint("the log may be of a newer version: start that version again")
        })?;
        Ok((frame.from, frame))
    };
    state.prefix(HELD.as_bytes()).map(read).collect()
}

/// Streams that wait as a whole for want of room.
pub(crate) fn parked_of(state: &State) -> Vec<String> {
    let names = state.prefix(PARKED.as_bytes()).map(|(key, _)| String::from_utf8_lossy(&key[PARKED.len()..]).into());
    names.collect()
}

pub(crate) fn parked_change(stream: &str, parked: bool) -> StateChange {
    let value = parked.then(bytes::Bytes::new);
    StateChange { key: format!("{PARKED}{stream}").into_bytes().into(), value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_knows_which_rows_wait_and_why() {
        let mut frame = HeldFrame::new(7);
        let rows = [("a", 10, Some("contract: x")), ("a", 10, None), ("b", 5, Some("contract: x")), ("a", 1, None)];
        for (stream, bytes, reason) in rows {
            frame.count(stream);
            frame.wait(bytes, reason);
        }
        assert_eq!((frame.rows(), frame.bytes()), (4, 26));
        assert_eq!(
            (frame.reason(0), frame.reason(1), frame.reason(2)),
            (Some("contract: x"), None, Some("contract: x"))
        );
        assert_eq!(frame.forget("a"), 3);
        assert_eq!((frame.left.clone(), frame.bytes()), (vec![(2, 3)], 5));
        assert!(frame.waits(2) && !frame.waits(3));
        assert_eq!(frame.forget("b"), 1);
        assert_eq!(frame.change().value, None);
    }
}
