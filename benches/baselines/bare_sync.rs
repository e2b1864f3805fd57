//! A route of axum that appends what is sent to a file and syncs it before it
//! answers, each by itself: what registering could cost at the least if each
//! registration had a sync of its own. Nothing is parsed, compared or kept.

use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::sync::mpsc;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use axum::serve::ListenerExt;
use bytes::Bytes;
use tokio::sync::oneshot;

use crate::Result;

/// Serves until killed. One thread writes, as a log has.
pub(crate) fn serve(port: u16, path: &Path) -> Result<()> {
    let mut file = File::create(path)?;
    let (sender, taken) = mpsc::channel::<(Bytes, oneshot::Sender<bool>)>();
    std::thread::spawn(move || {
        for (body, done) in taken {
            let written = file.write_all(&body).and_then(|()| file.sync_data());
            let _ = done.send(written.is_ok());
        }
    });
    let answer = move |body: Bytes| {
        let sender = sender.clone();
        async move {
            let (done, synced) = oneshot::channel();
            let sent = sender.send((body, done)).is_ok();
            match sent && synced.await.unwrap_or(false) {
                true => (StatusCode::OK, "{\"id\":1}"),
                false => (StatusCode::INTERNAL_SERVER_ERROR, ""),
            }
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(("127.0.0.1", port))?;
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?.tap_io(|stream| {
            let _ = stream.set_nodelay(true);
        });
        axum::serve(listener, Router::new().route("/subjects/{subject}/versions", post(answer))).await?;
        Ok(())
    })
}
