//! The least of a PostgreSQL client: login without a password, a question,
//! messages framed in place in one buffer of 4 MiB. TCP with TCP_NODELAY, as
//! the daemon has it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::ops::Range;

use crate::Result;

const BUFFER: usize = 4 << 20;
const READ: usize = 256 << 10;

/// A session.
pub(crate) struct Wire {
    socket: TcpStream,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes that the last read brought.
    pub(crate) last_read: usize,
    /// Reads so far.
    pub(crate) reads: u64,
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> usize {
    bytes[at..].first_chunk().map_or(0, |b| u32::from_be_bytes(*b)) as usize
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |b| u64::from_be_bytes(*b))
}

impl Wire {
    /// Logs in.
    pub(crate) fn connect(port: u16, database: &str, replication: bool) -> Result<Self> {
        let socket = TcpStream::connect(("127.0.0.1", port))?;
        socket.set_nodelay(true)?;
        let mut settings = vec![("user", "postgres"), ("database", database)];
        if replication {
            settings.push(("replication", "database"));
        }
        settings.extend([("client_encoding", "UTF8"), ("DateStyle", "ISO"), ("TimeZone", "UTC")]);
        let mut start = vec![0, 0, 0, 0, 0, 3, 0, 0];
        for (name, value) in settings {
            start.extend_from_slice(name.as_bytes());
            start.push(0);
            start.extend_from_slice(value.as_bytes());
            start.push(0);
        }
        start.push(0);
        let length = start.len() as u32;
        start[..4].copy_from_slice(&length.to_be_bytes());
        let mut wire = Self { socket, buffer: vec![0; BUFFER], start: 0, end: 0, last_read: usize::MAX, reads: 0 };
        wire.socket.write_all(&start)?;
        wire.until(b'Z')?;
        Ok(wire)
    }

    /// Reads what there is.
    pub(crate) fn fill(&mut self) -> Result<()> {
        if BUFFER - self.end < READ {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let read = self.socket.read(&mut self.buffer[self.end..])?;
        if read == 0 {
            return Err("the server closed the connection".into());
        }
        self.end += read;
        self.last_read = read;
        self.reads += 1;
        Ok(())
    }

    /// The next message that is there whole.
    #[inline]
    pub(crate) fn take(&mut self) -> Option<(u8, Range<usize>)> {
        let have = self.end - self.start;
        if have < 5 {
            return None;
        }
        let length = u32_at(&self.buffer, self.start + 1);
        if have < length + 1 {
            return None;
        }
        let message = (self.buffer[self.start], self.start + 5..self.start + 1 + length);
        self.start += length + 1;
        Some(message)
    }

    #[inline]
    pub(crate) fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.buffer[range]
    }

    /// The next message, waited for; an error of the server is one.
    pub(crate) fn wait(&mut self) -> Result<(u8, Range<usize>)> {
        loop {
            match self.take() {
                Some((b'E', body)) => return Err(String::from_utf8_lossy(&self.buffer[body]).into()),
                Some(message) => return Ok(message),
                None => self.fill()?,
            }
        }
    }

    fn until(&mut self, tag: u8) -> Result<()> {
        while self.wait()?.0 != tag {}
        Ok(())
    }

    /// Sends a question.
    pub(crate) fn ask(&mut self, sql: &str) -> Result<()> {
        let mut message = vec![b'Q'];
        message.extend_from_slice(&((sql.len() + 5) as u32).to_be_bytes());
        message.extend_from_slice(sql.as_bytes());
        message.push(0);
        Ok(self.socket.write_all(&message)?)
    }

    /// Asks, and gives the first column of the last row.
    pub(crate) fn scalar(&mut self, sql: &str) -> Result<String> {
        self.ask(sql)?;
        let mut value = String::new();
        loop {
            match self.wait()? {
                (b'D', body) => {
                    let row = &self.buffer[body];
                    let length = u32_at(row, 2);
                    value = String::from_utf8_lossy(&row[6..6 + length]).into();
                }
                (b'Z', _) => return Ok(value),
                _ => {}
            }
        }
    }

    /// Begins a stream of pgoutput, protocol 1.
    pub(crate) fn stream(&mut self, slot: &str) -> Result<()> {
        self.ask(&format!("START_REPLICATION SLOT {slot} LOGICAL 0/0 (proto_version '1', publication_names 'bench')"))?;
        self.until(b'W')
    }

    /// Standby status: everything up to here may go.
    pub(crate) fn status(&mut self, lsn: u64) -> Result<()> {
        let mut message = vec![b'd', 0, 0, 0, 38, b'r'];
        for number in [lsn, lsn, lsn, 0] {
            message.extend_from_slice(&number.to_be_bytes());
        }
        message.push(0);
        Ok(self.socket.write_all(&message)?)
    }
}
