//! A client of HTTP/1.1 that costs as little as it can: one connection, one
//! request at a time, blocking.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

use crate::Result;

pub(crate) struct Client {
    line: BufReader<TcpStream>,
    head: String,
    body: Vec<u8>,
}

impl Client {
    pub(crate) fn connect(port: u16) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Self { line: BufReader::with_capacity(64 << 10, stream), head: String::new(), body: Vec::new() })
    }

    /// Sends a request as it is; status and body of the answer.
    pub(crate) fn send(&mut self, request: &[u8]) -> Result<(u16, &[u8])> {
        self.line.get_mut().write_all(request)?;
        let (mut status, mut length) = (0, 0);
        loop {
            self.head.clear();
            if self.line.read_line(&mut self.head)? == 0 {
                return Err("the connection was closed".into());
            }
            let line = self.head.trim_end();
            if line.is_empty() {
                break;
            }
            if status == 0 {
                status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or("no status")?;
            } else if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse()?;
            }
        }
        self.body.resize(length, 0);
        self.line.read_exact(&mut self.body)?;
        Ok((status, &self.body))
    }

    /// Asks for something that must succeed.
    pub(crate) fn ask(&mut self, method: &str, path: &str, body: &str) -> Result<Value> {
        match self.send(&request(method, path, body))? {
            (200, answer) => Ok(serde_json::from_slice(answer)?),
            (status, answer) => Err(format!("{method} {path}: {status} {}", String::from_utf8_lossy(answer)).into()),
        }
    }
}

/// As it goes over the line.
pub(crate) fn request(method: &str, path: &str, body: &str) -> Vec<u8> {
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n");
    if !body.is_empty() {
        request += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
    }
    (request + "\r\n" + body).into_bytes()
}
