//! A route of axum that appends what is sent to a file and syncs it before it
//! answers, each by itself: what registering could cost at the least if each
//! registration had a sync of its own. Nothing is parsed, compared or kept.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::mpsc;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use bytes::Bytes;
use tokio::sync::oneshot;

use super::route;
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
    route::serve(port, Router::new().route("/subjects/{subject}/versions", post(answer)))
}
