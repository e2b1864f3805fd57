//! What can go wrong with the log.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// An error of the log.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another process has the log open for writing.
    #[error("{} is in use by another daemon", .0.display())]
    Locked(PathBuf),
    /// A file operation failed; what is on disk is as it was.
    #[error("could not {what} {}", .path.display())]
    Io {
        /// The operation.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Arc<io::Error>,
    },
    /// A write or sync failed while running: what the disk holds is unknown
    /// until the log is opened anew.
    #[error("the log can no longer be written: {what} {} failed", .path.display())]
    Fatal {
        /// The operation.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Arc<io::Error>,
    },
    /// Something that was durable does not read back.
    #[error("{} is corrupt at byte {at}, offset {offset}: {what}", .path.display())]
    Corrupt {
        /// The segment.
        path: PathBuf,
        /// Byte position in it.
        at: u64,
        /// The first offset that is affected.
        offset: u64,
        /// What does not fit.
        what: String,
    },
    /// A segment between two others is gone.
    #[error("segment {} does not follow the one before it: {what}", .path.display())]
    Gap {
        /// The later segment.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// Written by a later version.
    #[error("{} has format version {version}, this program knows up to {known}", .path.display())]
    Version {
        /// The segment.
        path: PathBuf,
        /// Its version.
        version: u8,
        /// Ours.
        known: u8,
    },
    /// The offset is no longer, or not yet, in the log.
    #[error("offset {offset} is not in the log, which holds {start} to {end}")]
    OutOfRange {
        /// What was asked for.
        offset: u64,
        /// The first held.
        start: u64,
        /// The high-water mark.
        end: u64,
    },
    /// A batch is greater than a frame may be.
    #[error("a batch of {0} bytes is greater than a frame may be")]
    TooLarge(usize),
    /// See [`crate::Position::MAX`].
    #[error("a position of {0} bytes is longer than the log allows")]
    PositionTooLong(usize),
    /// Not 32 hex digits.
    #[error("{0:?} is not a log id")]
    NotALogId(String),
    /// The log was closed.
    #[error("the log is closed")]
    Closed,
}

impl Error {
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Error::Io { what, path: path.into(), source: Arc::new(source) }
    }

    pub(crate) fn fatal(what: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Error::Fatal { what, path: path.into(), source: Arc::new(source) }
    }

    /// Whether the log on disk is damaged, rather than out of reach.
    pub fn is_corruption(&self) -> bool {
        matches!(self, Error::Corrupt { .. } | Error::Gap { .. })
    }
}

/// With the log's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;
