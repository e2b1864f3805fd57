//! What can go wrong at a store.
//!
//! All of it is tried again: a full disk, a missing bucket, a withdrawn right
//! are mended outside, without a restart, and the log keeps what waits. It is
//! loud in `status` meanwhile. Only what another writer or log left there halts.

use connector::Error;

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
