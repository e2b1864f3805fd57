//! A mark: an event of the stream that is not a row. Rare, so its form is JSON.

use serde::{Deserialize, Serialize};
use storage::Micros;

/// What a control frame with a record carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// `snapshot_begin` or `snapshot_end`.
    pub op: String,
    /// Of the table: schema and table part of the stream.
    pub schema: String,
    /// See `schema`.
    pub table: String,
    /// The table's stream.
    pub stream: String,
    /// The log's number of the table's schema at that time.
    pub shape: u32,
    /// Counts a table's snapshots, from 1.
    pub generation: u64,
    /// The sinks it is meant for; empty: all.
    #[serde(default, rename = "for", skip_serializing_if = "Vec::is_empty")]
    pub sinks: Vec<String>,
    /// The round's consistent point, as bytes.
    pub position: Vec<u8>,
    /// In its round.
    pub ordinal: u64,
    /// When.
    pub commit_time: i64,
}

impl Mark {
    /// Opens a generation.
    pub const BEGIN: &'static str = "snapshot_begin";
    /// Closes one.
    pub const END: &'static str = "snapshot_end";

    /// As the log carries it.
    pub fn to_payload(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a mark has no map with keys that are not text")
    }

    /// From a control frame. None: a control frame of a later version.
    pub fn from_payload(payload: &[u8]) -> Option<Self> {
        serde_json::from_slice(payload).ok()
    }

    /// When.
    pub fn time(&self) -> Micros {
        Micros(self.commit_time)
    }
}

/// A place in the log at which a step of some sinks ends: their destinations
/// then stand still in exactly this state for a moment, to be looked at. No
/// event: an earlier version passes it over as a control frame it does not know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepEnd {
    /// Whoever waits for it knows it by this.
    pub step_end: String,
    /// The sinks it is meant for.
    #[serde(rename = "for")]
    pub sinks: Vec<String>,
    /// Where the source stands there, as bytes: all that was committed up to
    /// here lies before it in the log, and nothing else.
    pub position: Vec<u8>,
}

impl StepEnd {
    /// As the log carries it.
    pub fn to_payload(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("it has no map with keys that are not text")
    }

    /// From a control frame. None: another one.
    pub fn from_payload(payload: &[u8]) -> Option<Self> {
        serde_json::from_slice(payload).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_and_the_end_of_a_step_are_not_taken_for_each_other() {
        let end = StepEnd { step_end: "1".into(), sinks: vec!["lake".into()], position: vec![1, 2] };
        assert_eq!(StepEnd::from_payload(&end.to_payload()).as_ref(), Some(&end));
        assert_eq!(Mark::from_payload(&end.to_payload()), None);
        let mark = Mark {
            op: Mark::BEGIN.into(),
            schema: "public".into(),
            table: "t".into(),
            stream: "shop.public.t".into(),
            shape: 1,
            generation: 1,
            sinks: Vec::new(),
            position: vec![1],
            ordinal: 0,
            commit_time: 0,
        };
        assert_eq!(StepEnd::from_payload(&mark.to_payload()), None);
    }
}
