//! COPY … FROM STDIN (FORMAT binary).

use bytes::{Bytes, BytesMut};
use connector::Result;
use futures_util::SinkExt;
use tokio_postgres::{Client, CopyInSink};

use crate::error::failed;

/// One message to the server.
const CHUNK: usize = 256 << 10;

/// Rows on their way into a table.
pub(crate) struct Copy {
    sink: std::pin::Pin<Box<CopyInSink<Bytes>>>,
    buffer: BytesMut,
    what: String,
}

impl Copy {
    /// Begins; `columns` is a list for SQL.
    pub(crate) async fn begin(client: &Client, table: &str, columns: &str) -> Result<Self> {
        let what = format!("could not copy rows into {table}");
        let sql = format!("COPY {table} ({columns}) FROM STDIN (FORMAT binary)");
        let sink = client.copy_in(&sql).await.map_err(|error| failed(error, what.clone()))?;
        let mut buffer = BytesMut::with_capacity(CHUNK + (CHUNK >> 2));
        buffer.extend_from_slice(b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0");
        Ok(Self { sink: Box::pin(sink), buffer, what })
    }

    /// The buffer, for one row's count of fields and fields.
    pub(crate) fn row(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Rows that are ready as they are.
    pub(crate) async fn rows(&mut self, rows: &[u8]) -> Result<()> {
        for part in rows.chunks(CHUNK) {
            self.buffer.extend_from_slice(part);
            self.flow().await?;
        }
        Ok(())
    }

    /// Sends what is enough for a message.
    pub(crate) async fn flow(&mut self) -> Result<()> {
        if self.buffer.len() >= CHUNK { self.send().await } else { Ok(()) }
    }

    async fn send(&mut self) -> Result<()> {
        self.feed().await.map_err(|error| failed(error, self.what.clone()))
    }

    async fn feed(&mut self) -> std::result::Result<(), tokio_postgres::Error> {
        let full = std::mem::replace(&mut self.buffer, BytesMut::with_capacity(CHUNK + (CHUNK >> 2)));
        self.sink.feed(full.freeze()).await
    }

    /// Ends; the rows are there when it returns.
    pub(crate) async fn finish(self) -> Result<u64> {
        let what = self.what.clone();
        self.end().await.map_err(|error| failed(error, what))
    }

    /// As `finish`, with what the server says of rows that it refuses.
    pub(crate) async fn end(mut self) -> std::result::Result<u64, tokio_postgres::Error> {
        self.buffer.extend_from_slice(&(-1i16).to_be_bytes());
        self.feed().await?;
        self.sink.as_mut().finish().await
    }
}
