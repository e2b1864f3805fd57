//! `control.sock`: how commands speak to a running daemon. One line of JSON
//! asks, one answers.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(2);
/// An order is confirmed when it is durable.
pub(crate) const ORDER: Duration = Duration::from_secs(35);
const LONGEST: u64 = 64 << 10;
const AT_ONCE: usize = 16;

/// Answers until cancelled.
pub(crate) async fn serve<A>(
    path: &Path,
    answer: impl Fn(Value) -> A + Clone + Send + Sync + 'static,
    stop: CancellationToken,
) -> std::io::Result<()>
where
    A: Future<Output = Value> + Send,
{
    // Left by a daemon that was killed; the log's lock says that none runs.
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    // It is for people and their scripts: few at a time, and not for long.
    let mut asking = JoinSet::new();
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => break,
            stream = listener.accept(), if asking.len() < AT_ONCE => stream,
            Some(_) = asking.join_next() => continue,
        };
        let Ok((stream, _)) = stream else { continue };
        let answer = answer.clone();
        asking.spawn(async move { tokio::time::timeout(ORDER, serve_one(stream, &answer)).await.map(drop) });
    }
    let _ = std::fs::remove_file(path);
    Ok(())
}

async fn serve_one<A>(stream: UnixStream, answer: &impl Fn(Value) -> A) -> std::io::Result<()>
where
    A: Future<Output = Value> + Send,
{
    use tokio::io::AsyncReadExt;
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut read = BufReader::new(read).take(LONGEST);
    // Whoever connects has something to ask.
    let _ = tokio::time::timeout(PATIENCE, read.read_line(&mut line)).await;
    let asked: Value = serde_json::from_str(&line).unwrap_or_default();
    let answered = answer(asked).await;
    write.write_all(format!("{answered}\n").as_bytes()).await
}

/// Asks a running daemon; None if none runs.
pub(crate) async fn ask(path: &Path, request: &Value) -> Option<Value> {
    ask_for(path, request, PATIENCE).await
}

/// As `ask`, of what takes longer.
pub(crate) async fn ask_for(path: &Path, request: &Value, patience: Duration) -> Option<Value> {
    let asked = async {
        let stream = UnixStream::connect(path).await.ok()?;
        let (read, mut write) = stream.into_split();
        write.write_all(format!("{request}\n").as_bytes()).await.ok()?;
        let mut line = String::new();
        BufReader::new(read).read_line(&mut line).await.ok()?;
        serde_json::from_str(&line).ok()
    };
    tokio::time::timeout(patience, asked).await.ok().flatten()
}
