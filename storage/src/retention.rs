//! Which segments may go.
//!
//! A sealed segment goes when everything in it lies below the floor (the least
//! checkpoint of a sink, and the first frame held back) and it is older, or all
//! together larger, than is to be kept. The newest segment always stays.

use std::io;
use std::path::Path;
use std::sync::PoisonError;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};
use crate::fault;
use crate::files::{Files, SyncPoint, segment_path};
use crate::log::{Options, Shared};
use crate::writer::PENDING_KEY;

/// Removes what is neither needed nor to be kept.
pub(crate) fn apply<F: Files>(shared: &Shared<F>, files: &F, folder: &Path, options: &Options) -> Result<()> {
    // Asked first: a file is opened for each length.
    let Some(floor) = floor(shared) else { return Ok(()) };
    let bases = shared.bases();
    let lengths: Vec<u64> = bases.iter().map(|&base| shared.length(base)).collect();
    let mut total: u64 = lengths.iter().sum();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as i64);
    let floor = floor.min(pending(shared));
    let mut upto = None;
    for (pair, length) in bases.windows(2).zip(&lengths) {
        if pair[1] > floor {
            break;
        }
        let time = shared.sealed(pair[0])?.map_or(i64::MAX, |sealed| sealed.time.0);
        let old = options.retain.age.is_some_and(|age| time < now.saturating_sub(age.as_micros() as i64));
        let large = options.retain.bytes.is_some_and(|bytes| total > bytes);
        if !old && !large {
            break;
        }
        total -= length;
        upto = Some(pair[1]);
    }
    upto.map_or(Ok(()), |upto| remove(shared, files, folder, upto))
}

/// Removes whole segments below an offset, whatever their age, but never what is needed.
pub(crate) fn trim<F: Files>(shared: &Shared<F>, files: &F, folder: &Path, upto: u64) -> Result<()> {
    remove(shared, files, folder, upto.min(floor(shared).unwrap_or(u64::MAX)).min(pending(shared)))
}

/// The least checkpoint of a sink; None: nobody has told it yet.
fn floor<F: Files>(shared: &Shared<F>) -> Option<u64> {
    *shared.floor.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The first frame held back and not released.
fn pending<F: Files>(shared: &Shared<F>) -> u64 {
    let state = shared.state();
    let value = state.get(PENDING_KEY).and_then(|value| std::str::from_utf8(value).ok());
    value.and_then(|value| value.parse().ok()).unwrap_or(u64::MAX)
}

/// Oldest first, and each removal synced before the next, so that neither a
/// crash nor a power cut leaves a hole. An index that stays is removed at the
/// next start.
fn remove<F: Files>(shared: &Shared<F>, files: &F, folder: &Path, upto: u64) -> Result<()> {
    for pair in shared.bases().windows(2).filter(|pair| pair[1] <= upto) {
        let path = segment_path(folder, pair[0]);
        match files.remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io("remove", &path, error)),
            _ => {}
        }
        // There may be none.
        let _ = files.remove(&path.with_extension("idx"));
        fault::point("retention");
        let synced = files.sync_folder(folder, SyncPoint::Removed);
        synced.map_err(|error| Error::io("sync the removal of", &path, error))?;
        shared.sealed.write().unwrap_or_else(PoisonError::into_inner).remove(&pair[0]);
        tracing::info!(segment = %path.display(), "removed");
    }
    Ok(())
}
