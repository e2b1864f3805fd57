//! What can go wrong at a store.
//!
//! All of it is tried again: a full disk, a missing bucket, a withdrawn right
//! are mended outside, without a restart, and the log keeps what waits. It is
//! loud in `status` meanwhile. Only what another writer or log left there halts.

use std::io::ErrorKind;

use connector::{Action, Error};

/// With what was attempted.
pub(crate) fn failed(error: object_store::Error, attempt: impl Into<String>) -> Error {
    use object_store::Error as E;
    let hint = match &error {
        E::NotFound { .. } => Some("does the bucket or folder exist?"),
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => {
            Some("check the keys in `options` of the sink, and what they may do: list, get, put, delete")
        }
        E::Generic { .. } => Some("is the store reachable? check `url` and `options` of the sink"),
        _ => None,
    };
    let failed = Error::retry(attempt).because(error);
    match hint {
        Some(hint) => failed.hint(hint),
        None => failed,
    }
}

/// An error while one table's folder was written to: what may be of this folder
/// alone is said to be so, and concerns the table alone if it lasts. What is of
/// them all stands in the way of the manifests too, which come first.
pub(crate) fn of_table(error: Error, stream: &str) -> Error {
    let (mut denied, mut kind) = (false, None);
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        denied |= matches!(error.downcast_ref(), Some(object_store::Error::PermissionDenied { .. }));
        kind = error.downcast_ref().map(std::io::Error::kind).or(kind);
        cause = error.source();
    }
    match kind {
        _ if error.action() != Action::Retry => error,
        Some(ErrorKind::InvalidFilename) => error
            .hint("its name is longer than a folder's may be here: rename the table, or leave it out with `tables`")
            .of_stream(stream),
        Some(ErrorKind::NotADirectory) => {
            error.hint("a file stands where a folder of the table is to be: take it away").of_stream(stream)
        }
        Some(ErrorKind::PermissionDenied) => error.of_stream(stream),
        _ if denied => error.of_stream(stream),
        _ => error,
    }
}
