//! The registry alone, as its clients see it: the real binary with only `[registry]`.

mod api;
mod clients;
mod drift;
mod hostile;
mod http;
mod kills;
mod security;
mod transfer;

use std::path::Path;
use std::time::Duration;

use highwater_tests::{Daemon, free_port, until};

/// A daemon that is a registry and nothing else.
pub(crate) struct Registry {
    pub(crate) daemon: Daemon,
    pub(crate) port: u16,
}

impl Registry {
    pub(crate) async fn start(folder: &Path, more: &str) -> Self {
        let port = free_port();
        let config = format!("[registry]\nbind = \"127.0.0.1:{port}\"\n{more}");
        let mut this = Self { daemon: Daemon::new(folder, &config), port };
        this.up().await;
        this
    }

    pub(crate) async fn up(&mut self) {
        self.daemon.start(&["run"], None);
        let port = self.port;
        until(20, "the registry answers", || async move {
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()
        })
        .await;
    }

    /// SIGTERM, and a clean end within 5 s.
    pub(crate) fn stop(&mut self) {
        self.daemon.signal("TERM");
        let ended = self.daemon.wait(Duration::from_secs(5));
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(!ended.stderr.contains("ERROR"), "{}", ended.stderr);
    }
}

/// A schema as a request has it.
pub(crate) fn body(schema: &str) -> String {
    serde_json::json!({"schema": schema}).to_string()
}
