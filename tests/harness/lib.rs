//! Real servers, the real daemon, a workload, and an oracle that knows the
//! truth from elsewhere.

// A test that cannot go on ends: that is what it is for.
#![expect(clippy::unwrap_used, reason = "this is test code")]

mod azure;
mod daemon;
mod gcs;
mod landed;
mod lossy;
mod postgres;
mod s3;
mod truth;
mod workload;

pub use azure::Azure;
pub use daemon::{Daemon, Ended};
pub use gcs::Gcs;
pub use landed::{Event, landed, offsets_of};
pub use lossy::Lossy;
pub use postgres::{Postgres, Server};
pub use s3::S3;
pub use truth::{Truth, compare, final_state};
pub use workload::Workload;

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The repository's root.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// A folder of this test's own, empty.
pub fn folder(name: &str) -> PathBuf {
    let folder = root().join("target/tests").join(format!("{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Waits for something to become true; says what did not.
pub async fn until<F: Future<Output = bool>>(seconds: u64, what: &str, mut check: impl FnMut() -> F) {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !check().await {
        assert!(Instant::now() < deadline, "after {seconds} s still not: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A port that nothing listens on.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Runs a command that must succeed; its output.
pub fn must(command: &mut std::process::Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}
