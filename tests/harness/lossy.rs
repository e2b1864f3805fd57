//! Somebody between a client and an HTTP server who loses answers: what was
//! asked for is done, and the client never hears of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A relay that loses the answers to some writes.
pub struct Lossy {
    pub port: u16,
    every: Arc<AtomicU64>,
    lost: Arc<AtomicU64>,
    relay: JoinHandle<()>,
}

impl Lossy {
    /// Before a server; of the answers to writes each n-th is lost, none for 0.
    pub async fn before(server: u16, every: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (every, writes, lost) =
            (Arc::new(AtomicU64::new(every)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (of_relay, lost_too) = (every.clone(), lost.clone());
        let relay = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let (every, writes, lost) = (of_relay.clone(), writes.clone(), lost_too.clone());
                tokio::spawn(async move {
                    // Whoever hangs up has heard enough.
                    let _ = hand_on(client, server, &every, &writes, &lost).await;
                });
            }
        });
        Self { port, every, lost, relay }
    }

    /// Another frequency from now on.
    pub fn lose_answers(&self, every: u64) {
        self.every.store(every, Ordering::SeqCst);
    }

    /// How many answers were lost.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::SeqCst)
    }
}

impl Drop for Lossy {
    fn drop(&mut self) {
        self.relay.abort();
    }
}

async fn hand_on(
    mut client: TcpStream,
    server: u16,
    every: &AtomicU64,
    writes: &AtomicU64,
    lost: &AtomicU64,
) -> std::io::Result<()> {
    let mut server = TcpStream::connect(("127.0.0.1", server)).await?;
    let (mut asked, mut answered) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let mut lose = false;
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let bytes = &asked[..read?];
                if bytes.is_empty() {
                    return Ok(());
                }
                // A request begins where a packet does: the answer to the one before was waited for.
                if bytes.starts_with(b"PUT ") || bytes.starts_with(b"POST ") {
                    let every = every.load(Ordering::SeqCst);
                    lose = every > 0 && writes.fetch_add(1, Ordering::SeqCst) % every == every - 1;
                } else if [&b"GET "[..], b"HEAD ", b"DELETE "].iter().any(|word| bytes.starts_with(word)) {
                    lose = false;
                }
                server.write_all(bytes).await?;
            }
            read = server.read(&mut answered) => {
                let bytes = &answered[..read?];
                // `100 Continue` is not the answer yet.
                if bytes.is_empty() || (lose && !bytes.starts_with(b"HTTP/1.1 100")) {
                    lost.fetch_add(u64::from(lose), Ordering::SeqCst);
                    return Ok(());
                }
                client.write_all(bytes).await?;
            }
        }
    }
}
