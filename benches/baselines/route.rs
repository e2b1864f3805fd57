//! axum's own server, with no guard, no roles and no deadlines.

use std::net::TcpListener;

use axum::Router;
use axum::serve::ListenerExt;

use crate::Result;

/// Serves until killed.
pub(crate) fn serve(port: u16, router: Router) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(("127.0.0.1", port))?;
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?.tap_io(|stream| {
            let _ = stream.set_nodelay(true);
        });
        axum::serve(listener, router).await?;
        Ok(())
    })
}
