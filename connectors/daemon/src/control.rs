//! `control.sock`: how commands speak to a running daemon. One line of JSON
//! asks, one answers.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(2);
const LONGEST: u64 = 1 << 20;

/// Answers until cancelled.
pub(crate) async fn serve(
    path: &Path,
    answer: impl Fn(&Value) -> Value + Send + Sync + 'static,
    stop: CancellationToken,
) -> std::io::Result<()> {
    // Left by a daemon that was killed; the log's lock says that none runs.
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => break,
            stream = listener.accept() => stream,
        };
        let Ok((stream, _)) = stream else { continue };
        // One at a time and not for long: it is for people and their scripts.
        let _ = tokio::time::timeout(PATIENCE, serve_one(stream, &answer)).await;
    }
    let _ = std::fs::remove_file(path);
    Ok(())
}

async fn serve_one(stream: UnixStream, answer: &impl Fn(&Value) -> Value) -> std::io::Result<()> {
    use tokio::io::AsyncReadExt;
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read).take(LONGEST).read_line(&mut line).await?;
    let asked: Value = serde_json::from_str(&line).unwrap_or_default();
    let answered = answer(&asked);
    write.write_all(format!("{answered}\n").as_bytes()).await
}

/// Asks a running daemon; None if none runs.
pub(crate) async fn ask(path: &Path, request: &Value) -> Option<Value> {
    let asked = async {
        let stream = UnixStream::connect(path).await.ok()?;
        let (read, mut write) = stream.into_split();
        write.write_all(format!("{request}\n").as_bytes()).await.ok()?;
        let mut line = String::new();
        BufReader::new(read).read_line(&mut line).await.ok()?;
        serde_json::from_str(&line).ok()
    };
    tokio::time::timeout(PATIENCE, asked).await.ok().flatten()
}
