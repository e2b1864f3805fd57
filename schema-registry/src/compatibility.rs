//! Whether a schema may follow others: levels, and whom each compares with.

mod violation;
mod walk;

pub use violation::{Violation, ViolationKind};
pub(crate) use walk::{Budget, Exhausted};

use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::avro::Avro;

/// What a new schema of a subject must be able to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Level {
    /// Anything.
    None,
    /// Read what the last version wrote.
    #[default]
    Backward,
    /// Read what all versions wrote.
    BackwardTransitive,
    /// Be read by the last version.
    Forward,
    /// Be read by all versions.
    ForwardTransitive,
    /// Both, with the last version.
    Full,
    /// Both, with all versions.
    FullTransitive,
}

impl Level {
    /// As Confluent writes it.
    pub fn name(self) -> &'static str {
        match self {
            Level::None => "NONE",
            Level::Backward => "BACKWARD",
            Level::BackwardTransitive => "BACKWARD_TRANSITIVE",
            Level::Forward => "FORWARD",
            Level::ForwardTransitive => "FORWARD_TRANSITIVE",
            Level::Full => "FULL",
            Level::FullTransitive => "FULL_TRANSITIVE",
        }
    }

    /// By its name, in any letter case.
    pub fn by_name(name: &str) -> Option<Self> {
        use Level::*;
        let all = [None, Backward, BackwardTransitive, Forward, ForwardTransitive, Full, FullTransitive];
        all.into_iter().find(|level| level.name().eq_ignore_ascii_case(name))
    }

    /// Whether more than the last version is looked at.
    pub fn is_transitive(self) -> bool {
        matches!(self, Level::BackwardTransitive | Level::ForwardTransitive | Level::FullTransitive)
    }

    fn backward(self) -> bool {
        matches!(self, Level::Backward | Level::BackwardTransitive | Level::Full | Level::FullTransitive)
    }

    fn forward(self) -> bool {
        matches!(self, Level::Forward | Level::ForwardTransitive | Level::Full | Level::FullTransitive)
    }
}

/// All that is wrong between a new schema and an old one at a level.
pub(crate) fn compare(new: &Avro, old: &Avro, level: Level, budget: &Budget) -> Result<Vec<Violation>, Exhausted> {
    let mut out = Vec::new();
    if level.backward() {
        walk::read(new, old, ["new", "old"], budget, &mut out)?;
    }
    if level.forward() {
        walk::read(old, new, ["old", "new"], budget, &mut out)?;
    }
    Ok(out)
}

/// An earlier version, as a comparison needs it.
#[derive(Clone, Debug)]
pub(crate) struct Earlier {
    pub(crate) version: u32,
    pub(crate) text: Arc<str>,
    pub(crate) schema: Arc<Avro>,
}

/// Compares with the versions that the level asks for, newest first, and
/// stops at the first that does not fit: what is said is about that one.
/// `earlier` is in order of version. Empty: compatible.
pub(crate) fn messages(
    new: &Avro,
    earlier: &[Earlier],
    level: Level,
    validate_fields: bool,
    deadline: Option<Instant>,
) -> Result<Vec<String>, Exhausted> {
    let budget = Budget::new(deadline);
    for old in earlier.iter().rev().take(if level.is_transitive() { usize::MAX } else { 1 }) {
        let violations = compare(new, &old.schema, level, &budget)?;
        if violations.is_empty() {
            continue;
        }
        let mut out: Vec<String> = violations.iter().take(MOST).map(Violation::to_string).collect();
        if violations.len() > MOST {
            out.push(format!("{{more: {}}}", violations.len() - MOST));
        }
        out.push(format!("{{oldSchemaVersion: {}}}", old.version));
        out.push(format!("{{oldSchema: '{}'}}", old.text));
        out.push(format!("{{validateFields: '{validate_fields}', compatibility: '{}'}}", level.name()));
        return Ok(out);
    }
    Ok(Vec::new())
}

/// Violations told of one comparison.
const MOST: usize = 1_000;

#[cfg(test)]
mod tests;
