//! `control.sock`: how commands speak to a running daemon. One line of JSON
//! asks, one answers.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(2);
const LONGEST: u64 = 16 << 20;
/// It is for people and their scripts.
const AT_ONCE: usize = 16;

/// Answers until cancelled; an answer may take its time and holds up no other.
pub(crate) async fn serve<F, A>(path: &Path, answer: F, stop: CancellationToken) -> std::io::Result<()>
where
    F: Fn(Value) -> A + Send + Sync + 'static,
    A: Future<Output = Value> + Send + 'static,
{
    // Left by a daemon that was killed; the log's lock says that none runs.
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    let answer = Arc::new(answer);
    let mut serving = JoinSet::new();
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = serving.join_next(), if !serving.is_empty() => continue,
            stream = listener.accept(), if serving.len() < AT_ONCE => stream,
        };
        let Ok((stream, _)) = stream else { continue };
        let answer = answer.clone();
        serving.spawn(async move {
            // Whoever asked may have gone.
            let _ = serve_one(stream, &*answer).await;
        });
    }
    let _ = std::fs::remove_file(path);
    // What was decided before the end is told, if it does not take long.
    let _ =
        tokio::time::timeout(Duration::from_millis(200), async { while serving.join_next().await.is_some() {} }).await;
    Ok(())
}

async fn serve_one<A: Future<Output = Value>>(stream: UnixStream, answer: &impl Fn(Value) -> A) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut read = BufReader::new(read).take(LONGEST);
    tokio::time::timeout(PATIENCE, read.read_line(&mut line)).await??;
    let asked: Value = serde_json::from_str(&line).unwrap_or_default();
    let answered = answer(asked).await;
    tokio::time::timeout(PATIENCE, write.write_all(format!("{answered}\n").as_bytes())).await?
}

/// Asks a running daemon; None if none runs.
pub(crate) async fn ask(path: &Path, request: &Value) -> Option<Value> {
    tokio::time::timeout(PATIENCE, ask_long(path, request)).await.ok().flatten()
}

/// Asks for what may take long.
pub(crate) async fn ask_long(path: &Path, request: &Value) -> Option<Value> {
    let stream = tokio::time::timeout(PATIENCE, UnixStream::connect(path)).await.ok()?.ok()?;
    let (read, mut write) = stream.into_split();
    write.write_all(format!("{request}\n").as_bytes()).await.ok()?;
    let mut line = String::new();
    BufReader::new(read).read_line(&mut line).await.ok()?;
    // A daemon that ended before it answered has not said whether it was done.
    let broken = || {
        serde_json::json!({
            "error": "the daemon ended before it answered",
            "remedy": "`highwater schemas list` and `highwater status` show whether it was done",
        })
    };
    Some(serde_json::from_str(&line).unwrap_or_else(|_| broken()))
}
