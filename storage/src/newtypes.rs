//! Words that must not be mixed: offset, position, epoch, time, and what is durable.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::error::{Error, Result};

/// A place in the log: the only order. Never used twice for something shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offset(pub u64);

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Half-open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffsetRange {
    /// The first.
    pub start: Offset,
    /// One behind the last.
    pub end: Offset,
}

/// A place in the source's stream: opaque, without order here.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Position(Bytes);

impl Position {
    /// The most bytes a position may have.
    pub const MAX: usize = 64 << 10;

    /// Refused above [`Position::MAX`] bytes.
    pub fn new(bytes: impl Into<Bytes>) -> Result<Self> {
        let bytes = bytes.into();
        if bytes.len() > Self::MAX { Err(Error::PositionTooLong(bytes.len())) } else { Ok(Self(bytes)) }
    }

    /// What the source made of it.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Position({})", self.0.escape_ascii())
    }
}

/// One incarnation of the daemon; a higher one fences a lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

/// Microseconds since the Unix epoch. For people and for file cuts; no order is
/// taken from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Micros(pub i64);

/// Which log this is: a checkpoint of another one is refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct LogId(pub [u8; 16]);

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogId({self})")
    }
}

impl FromStr for LogId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parsed = u128::from_str_radix(text, 16).ok().filter(|_| text.len() == 32);
        parsed.map(|n| Self(n.to_be_bytes())).ok_or_else(|| Error::NotALogId(text.into()))
    }
}

impl Serialize for LogId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for LogId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Proof that something is on disk; only a log makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Durable<T>(pub(crate) T);

impl<T> Durable<T> {
    /// What is durable.
    pub fn get(&self) -> &T {
        &self.0
    }

    /// What was durable.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> Durable<Option<T>> {
    /// Some durable thing, or none.
    pub fn transpose(self) -> Option<Durable<T>> {
        self.0.map(Durable)
    }
}
