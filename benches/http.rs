//! A client of HTTP/1.1 that costs as little as it can: one connection, one
//! request at a time, blocking; and a crowd of them on one thread.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;

use crate::Result;

/// For an answer.
const PATIENCE: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };

pub(crate) struct Client {
    stream: TcpStream,
    /// An answer, as far as it has come.
    answer: Vec<u8>,
    came: usize,
    /// Of the answer: its status, and where its body stands.
    head: Option<(u16, Range<usize>)>,
}

impl Client {
    pub(crate) fn connect(port: u16) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Self { stream, answer: vec![0; 64 << 10], came: 0, head: None })
    }

    /// Sends a request as it is; status and body of the answer.
    pub(crate) fn send(&mut self, request: &[u8]) -> Result<(u16, &[u8])> {
        self.begin(request)?;
        while !self.read()? {}
        self.answer()
    }

    fn begin(&mut self, request: &[u8]) -> Result<()> {
        (self.came, self.head) = (0, None);
        Ok(self.stream.write_all(request)?)
    }

    /// Reads once; whether the answer is whole.
    fn read(&mut self) -> Result<bool> {
        let came = self.stream.read(&mut self.answer[self.came..])?;
        if came == 0 {
            return Err("the connection was closed".into());
        }
        self.came += came;
        if self.head.is_none() {
            self.head = parse_head(&self.answer[..self.came])?;
        }
        match &self.head {
            Some((_, body)) if self.came >= body.end => return Ok(true),
            Some((_, body)) => self.answer.resize(body.end.max(self.answer.len()), 0),
            None if self.came == self.answer.len() => return Err("an answer's head is too long".into()),
            None => {}
        }
        Ok(false)
    }

    fn answer(&self) -> Result<(u16, &[u8])> {
        let (status, body) = self.head.clone().ok_or("no answer")?;
        Ok((status, &self.answer[body]))
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

/// Status, and where the body stands; None if there is more to come.
fn parse_head(answer: &[u8]) -> Result<Option<(u16, Range<usize>)>> {
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let mut lines = answer[..end].split(|byte| *byte == b'\n');
    let status = lines.next().and_then(|line| std::str::from_utf8(line.get(9..12)?).ok()?.parse().ok());
    let status = status.ok_or("no status")?;
    let named = |line: &&[u8]| line.get(..15).is_some_and(|name| name.eq_ignore_ascii_case(b"content-length:"));
    let length = match lines.find(named) {
        Some(line) => std::str::from_utf8(&line[15..])?.trim().parse()?,
        None => 0,
    };
    Ok(Some((status, end + 4..end + 4 + length)))
}

/// Clients that share a thread, each with a connection of its own and one request
/// under way: a thread each would cost what they measure a tenth. `next` writes
/// a request, `right` looks at an answer; answers a second.
pub(crate) fn crowd(
    port: u16,
    clients: usize,
    time: Duration,
    mut next: impl FnMut(&mut Vec<u8>),
    right: impl Fn(u16, &[u8]) -> bool,
) -> Result<f64> {
    let mut all = (0..clients).map(|_| Client::connect(port)).collect::<Result<Vec<_>>>()?;
    let (mut asked, mut answers) = (Vec::new(), 0);
    let started = Instant::now();
    let mut begin = |client: &mut Client| {
        asked.clear();
        next(&mut asked);
        client.begin(&asked)
    };
    all.iter_mut().try_for_each(&mut begin)?;
    while !all.is_empty() {
        let mut waited: Vec<_> = all.iter().map(|client| PollFd::new(&client.stream, PollFlags::IN)).collect();
        if poll(&mut waited, Some(&PATIENCE))? == 0 {
            return Err("nothing was answered for a minute".into());
        }
        let ready: Vec<bool> = waited.iter().map(|one| !one.revents().is_empty()).collect();
        let ending = started.elapsed() >= time;
        for (i, ready) in ready.into_iter().enumerate().rev() {
            if !ready || !all[i].read()? {
                continue;
            }
            let (status, body) = all[i].answer()?;
            if !right(status, body) {
                return Err(format!("{status} {}", String::from_utf8_lossy(body)).into());
            }
            answers += 1;
            match ending {
                true => drop(all.swap_remove(i)),
                false => begin(&mut all[i])?,
            }
        }
    }
    Ok(f64::from(answers) / started.elapsed().as_secs_f64())
}
