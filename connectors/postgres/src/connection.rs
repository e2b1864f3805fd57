//! Our own blocking connection, for what tokio-postgres does not do
//! (replication) or not fast enough (COPY): messages are framed in place in one
//! large buffer, without a task, a channel or an allocation per message. It
//! lives in a thread of its owner.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256};
use postgres_protocol::message::frontend;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

use crate::error::{ServerError, WireError};
use crate::target::Target;
use crate::tls::{Tls, server_end_point};

type Result<T, E = WireError> = std::result::Result<T, E>;

const BUFFER: usize = 1 << 20;
/// PostgreSQL's own greatest message, and its header.
const MAX_MESSAGE: usize = 0x3fff_ffff + 5;
const CONNECT: Duration = Duration::from_secs(10);
/// How long a read waits before it says that there is nothing yet.
pub(crate) const TICK: Duration = Duration::from_millis(100);
/// A COPY comes in sends of 8 KiB. A reader that wakes for each takes the
/// processor from the server every 60 rows, which costs both half as much again
/// as the rows; so it lets them gather in the socket. Not under TLS, where a
/// read brings one record however many there are.
const NAP: Duration = Duration::from_micros(500);
const SHORT_READ: usize = 128 << 10;
/// A server that says nothing during login is not waited for longer.
const LOGIN_TICKS: u32 = 300;

/// Settings that decide how values look: the same on every connection of ours,
/// whatever the role or the database has.
pub(crate) const SETTINGS: &[(&str, &str)] = &[
    // First what ends a session or a statement, be it one of these.
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, MDY"),
    ("IntervalStyle", "iso_8601"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "1"),
    ("bytea_output", "hex"),
    ("lc_monetary", "C"),
    ("application_name", "highwater"),
];
/// The same of settings that came with 14 and 17: a server that does not know
/// one would turn away a login with it.
pub(crate) const LATER_SETTINGS: &str =
    "SELECT set_config(name, '0', false) FROM unnest('{transaction_timeout,idle_session_timeout}'::text[]) name
 WHERE current_setting(name, true) <> '0'";

enum Line {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Line {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Line::Tcp(line) => line.read(buffer),
            Line::Unix(line) => line.read(buffer),
            Line::Tls(line) => line.read(buffer),
        }
    }

    fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let write = |line: &mut dyn Write, bytes: &[u8]| {
            // The read timeout is one of the socket; TLS may read within a write.
            match line.write(bytes).and_then(|n| line.flush().map(|()| n)) {
                Err(error) if is_tick(&error) => Ok(0),
                done => done,
            }
        };
        while !bytes.is_empty() {
            let n = match self {
                Line::Tcp(line) => write(line, bytes)?,
                Line::Unix(line) => write(line, bytes)?,
                Line::Tls(line) => write(&mut **line, bytes)?,
            };
            bytes = &bytes[n..];
        }
        Ok(())
    }
}

/// Ends a connection from another thread: what waits in it fails.
pub(crate) struct Closer(Socket);

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Closer {
    /// May be repeated.
    pub(crate) fn close(&self) {
        // An error means that it is closed already.
        let _ = match &self.0 {
            Socket::Tcp(socket) => socket.shutdown(Shutdown::Both),
            Socket::Unix(socket) => socket.shutdown(Shutdown::Both),
        };
    }
}

/// A session with a server.
pub(crate) struct Connection {
    line: Line,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    parameters: HashMap<String, String>,
    /// Bytes that the last read brought.
    pub(crate) last_read: usize,
    closer: Socket,
}

pub(crate) fn is_tick(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

impl Connection {
    #[cfg(test)]
    pub(crate) fn over(socket: UnixStream) -> io::Result<Self> {
        let closer = Socket::Unix(socket.try_clone()?);
        let (buffer, parameters) = (vec![0; BUFFER], HashMap::new());
        Ok(Self { line: Line::Unix(socket), buffer, start: 0, end: 0, parameters, last_read: 0, closer })
    }

    #[cfg(test)]
    pub(crate) fn room(&self) -> usize {
        self.buffer.len()
    }

    /// Logs in; with `replication`, as a walsender of the database.
    pub(crate) fn connect(target: &Target, replication: bool) -> Result<Self> {
        let (mut line, closer) = match target.socket() {
            Some(path) => {
                let socket = UnixStream::connect(path)?;
                socket.set_read_timeout(Some(TICK))?;
                let closer = Socket::Unix(socket.try_clone()?);
                (Line::Unix(socket), closer)
            }
            None => {
                let socket = dial(&target.host, target.port)?;
                let closer = Socket::Tcp(socket.try_clone()?);
                (Line::Tcp(socket), closer)
            }
        };
        let mut end_point = None;
        if let (Tls::VerifyFull(config), Line::Tcp(socket)) = (&target.tls, &mut line) {
            let socket = socket.try_clone()?;
            let (tls, certificate) = encrypt(socket, config.clone(), &target.host)?;
            end_point = Some(certificate);
            line = Line::Tls(Box::new(tls));
        }
        let mut connection =
            Self { line, buffer: vec![0; BUFFER], start: 0, end: 0, parameters: HashMap::new(), last_read: 0, closer };
        connection.login(target, replication, end_point)?;
        connection.query(LATER_SETTINGS)?;
        Ok(connection)
    }

    /// A handle that ends it from another thread.
    pub(crate) fn closer(&self) -> io::Result<Closer> {
        Ok(Closer(match &self.closer {
            Socket::Tcp(socket) => Socket::Tcp(socket.try_clone()?),
            Socket::Unix(socket) => Socket::Unix(socket.try_clone()?),
        }))
    }

    /// Whether a read waits a tick for something, or says at once that there is nothing.
    pub(crate) fn set_waiting(&self, waiting: bool) -> io::Result<()> {
        match &self.closer {
            Socket::Tcp(socket) => socket.set_nonblocking(!waiting),
            Socket::Unix(socket) => socket.set_nonblocking(!waiting),
        }
    }

    /// A parameter that the server reported, such as `server_version`.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    fn login(&mut self, target: &Target, replication: bool, end_point: Option<Option<Vec<u8>>>) -> Result<()> {
        let mut out = BytesMut::new();
        let mut parameters = vec![("user", target.user.as_str()), ("database", target.database.as_str())];
        if replication {
            parameters.push(("replication", "database"));
        }
        parameters.extend_from_slice(SETTINGS);
        frontend::startup_message(parameters, &mut out)?;
        self.send(&out)?;
        let mut scram: Option<ScramSha256> = None;
        let mut proven = false;
        loop {
            let (tag, body) = self.wait()?;
            let body = &self.buffer[body];
            match tag {
                b'R' => {
                    let (kind, rest) = body.split_first_chunk::<4>().ok_or_else(|| short("authentication"))?;
                    out.clear();
                    match u32::from_be_bytes(*kind) {
                        0 if scram.is_some() && !proven => {
                            return Err(WireError::Login("the server did not prove that it knows the password".into()));
                        }
                        0 => continue,
                        3 => {
                            let safe = end_point.is_some() || target.socket().is_some() || is_loopback(&target.host);
                            if !safe {
                                let why = "the server asks for the password in the clear over an open line";
                                return Err(WireError::Login(why.into()));
                            }
                            frontend::password_message(password(target)?, &mut out)?;
                        }
                        5 => {
                            let salt = *rest.first_chunk::<4>().ok_or_else(|| short("MD5 salt"))?;
                            let hash = md5_hash(target.user.as_bytes(), password(target)?, salt);
                            frontend::password_message(hash.as_bytes(), &mut out)?;
                        }
                        10 => {
                            let offered: Vec<&[u8]> = rest.split(|&b| b == 0).filter(|m| !m.is_empty()).collect();
                            let plus = offered.contains(&SCRAM_SHA_256_PLUS.as_bytes());
                            let bound = end_point.clone().flatten();
                            let (mechanism, binding) = match (plus, bound) {
                                (true, Some(hash)) => (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(hash)),
                                _ if !offered.contains(&SCRAM_SHA_256.as_bytes()) => {
                                    let why = "no login method of the server is known here";
                                    return Err(WireError::Login(why.into()));
                                }
                                // We could, the server says it cannot: it sees the 'y' and
                                // refuses if somebody in between took its offer away.
                                (false, Some(_)) => (SCRAM_SHA_256, ChannelBinding::unrequested()),
                                _ => (SCRAM_SHA_256, ChannelBinding::unsupported()),
                            };
                            tracing::debug!(mechanism, "logging in");
                            let exchange = ScramSha256::new(password(target)?, binding);
                            frontend::sasl_initial_response(mechanism, exchange.message(), &mut out)?;
                            scram = Some(exchange);
                        }
                        11 => {
                            let exchange = scram.as_mut().ok_or_else(|| short("SASL exchange"))?;
                            exchange.update(rest).map_err(|error| WireError::Login(error.to_string()))?;
                            frontend::sasl_response(exchange.message(), &mut out)?;
                        }
                        12 => {
                            let exchange = scram.as_mut().ok_or_else(|| short("SASL exchange"))?;
                            exchange.finish(rest).map_err(|error| WireError::Login(error.to_string()))?;
                            proven = true;
                            continue;
                        }
                        other => return Err(WireError::Login(format!("method {other} is not known here"))),
                    }
                    self.send(&out)?;
                }
                b'K' | b'v' => {}
                b'Z' => return Ok(()),
                other => return Err(unexpected(other, "login")),
            }
        }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.line.write_all(bytes)?)
    }

    /// Whether a whole message waits in the buffer.
    pub(crate) fn is_ready(&self) -> bool {
        matches!(self.framed(), Ok(Some(_)))
    }

    fn framed(&self) -> Result<Option<usize>> {
        let Some(header) = self.buffer.get(self.start..self.end).and_then(|have| have.first_chunk::<5>()) else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        if !(4..MAX_MESSAGE).contains(&length) {
            return Err(WireError::Protocol(format!("a message of {length} bytes")));
        }
        Ok((self.end - self.start > length).then_some(length + 1))
    }

    /// The next message's tag and where its body is in the buffer, if it is
    /// there whole. Answers that belong to no question are taken in here.
    pub(crate) fn take(&mut self) -> Result<Option<(u8, Range<usize>)>> {
        while let Some(length) = self.framed()? {
            let (tag, body) = (self.buffer[self.start], self.start + 5..self.start + length);
            self.start += length;
            match tag {
                b'N' | b'A' => {}
                b'S' => {
                    let mut parts = self.buffer[body].split(|&b| b == 0).map(String::from_utf8_lossy);
                    if let (Some(name), Some(value)) = (parts.next(), parts.next()) {
                        self.parameters.insert(name.into_owned(), value.into_owned());
                    }
                }
                b'E' => return Err(server_error(&self.buffer[body]).into()),
                _ => return Ok(Some((tag, body))),
            }
        }
        Ok(None)
    }

    pub(crate) fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.buffer[range]
    }

    /// Reads what there is; false if nothing came within a tick.
    pub(crate) fn fill(&mut self) -> Result<bool> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.buffer.len() > 8 * BUFFER {
                // One huge row must not keep its memory for ever.
                self.buffer = vec![0; BUFFER];
            }
        }
        if self.buffer.len() - self.end < BUFFER / 4 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            if self.buffer.len() - self.end < BUFFER / 4 {
                // As long as what has come fills it: what is only announced takes no memory.
                let message = self.buffer[..self.end]
                    .first_chunk::<5>()
                    .map_or(0, |header| u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize);
                let enough = (message + BUFFER).max(self.buffer.len() + BUFFER);
                let length = (self.buffer.len() * 16).min(enough).min(MAX_MESSAGE + BUFFER);
                // Pages that nothing has come for are not touched, and a row of 64 MiB
                // leaves no smaller buffers behind than one of 16.
                let mut larger = vec![0; length];
                larger[..self.end].copy_from_slice(&self.buffer[..self.end]);
                self.buffer = larger;
            }
        }
        match self.line.read(&mut self.buffer[self.end..]) {
            Ok(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection").into()),
            Ok(n) => {
                self.end += n;
                self.last_read = n;
                Ok(true)
            }
            Err(error) if is_tick(&error) => Ok(false),
            // Under TLS 1.3 the server's word about our certificate comes only here.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(WireError::Tls(error.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    /// The next message, waited for as long as a login may take.
    fn wait(&mut self) -> Result<(u8, Range<usize>)> {
        let mut ticks = 0;
        loop {
            if let Some(message) = self.take()? {
                return Ok(message);
            }
            if !self.fill()? {
                ticks += 1;
                if ticks > LOGIN_TICKS {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "the server does not answer").into());
                }
            }
        }
    }

    /// The next message, however long it takes; `Closer` ends the wait.
    pub(crate) fn wait_long(&mut self) -> Result<(u8, Range<usize>)> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(message);
            }
            self.fill()?;
        }
    }

    /// Runs statements; all their rows as text.
    pub(crate) fn query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out)?;
        self.send(&out)?;
        let mut rows = Vec::new();
        let mut failed = None;
        loop {
            match self.wait_long() {
                Ok((b'D', body)) => rows.push(data_row(&self.buffer[body])?),
                Ok((b'T' | b'C' | b'I', _)) => {}
                Ok((b'Z', _)) => return failed.map_or(Ok(rows), Err),
                Ok((tag, _)) => return Err(unexpected(tag, "query")),
                // The session goes on behind an error of a statement.
                Err(WireError::Server(error)) if error.severity == "ERROR" => failed = Some(error.into()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Begins `COPY … TO STDOUT`; `copy_row` must be called until it gives None.
    pub(crate) fn copy_out(&mut self, sql: &str) -> Result<()> {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out)?;
        self.send(&out)?;
        match self.wait_long()? {
            (b'H', _) => {
                // What follows at once may be all.
                self.last_read = SHORT_READ;
                Ok(())
            }
            (tag, _) => Err(unexpected(tag, "COPY")),
        }
    }

    /// The next piece of a COPY, in place; None when it is over.
    pub(crate) fn copy_row(&mut self) -> Result<Option<&[u8]>> {
        loop {
            let Some(message) = self.take()? else {
                if self.last_read < SHORT_READ && !matches!(self.line, Line::Tls(_)) {
                    std::thread::sleep(NAP);
                }
                self.fill()?;
                continue;
            };
            match message {
                (b'd', body) => return Ok(Some(&self.buffer[body])),
                (b'c' | b'C', _) => {}
                (b'Z', _) => return Ok(None),
                (tag, _) => return Err(unexpected(tag, "COPY")),
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut out = BytesMut::new();
        frontend::terminate(&mut out);
        // The server notices a closed socket too.
        let _ = self.line.write_all(&out);
    }
}

fn dial(host: &str, port: u16) -> Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in (host.trim_matches(['[', ']']), port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(socket) => {
                socket.set_nodelay(true)?;
                socket.set_read_timeout(Some(TICK))?;
                return Ok(socket);
            }
            Err(error) => last = error,
        }
    }
    Err(last.into())
}

type Encrypted = (StreamOwned<ClientConnection, TcpStream>, Option<Vec<u8>>);

fn encrypt(mut socket: TcpStream, config: std::sync::Arc<rustls::ClientConfig>, host: &str) -> Result<Encrypted> {
    let mut out = BytesMut::new();
    frontend::ssl_request(&mut out);
    socket.write_all(&out)?;
    // One byte and no more: what else came in the clear could have been put
    // there by somebody in between (CVE-2021-23222).
    let mut answer = [0; 1];
    socket.set_read_timeout(Some(CONNECT))?;
    socket.read_exact(&mut answer)?;
    if answer != *b"S" {
        return Err(WireError::NoTls);
    }
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
        .map_err(|_| WireError::Tls(format!("{host:?} is no name a certificate can be for")))?;
    let mut session = ClientConnection::new(config, name).map_err(|error| WireError::Tls(error.to_string()))?;
    while session.is_handshaking() {
        session.complete_io(&mut socket).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => WireError::Tls(error.to_string()),
            _ => error.into(),
        })?;
    }
    let certificate = session.peer_certificates().and_then(|chain| chain.first());
    let end_point = certificate.and_then(|certificate| server_end_point(certificate));
    socket.set_read_timeout(Some(TICK))?;
    Ok((StreamOwned::new(session, socket), end_point))
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn password(target: &Target) -> Result<&[u8]> {
    let none = || WireError::Login("the server asks for a password and none is set".into());
    target.password.as_deref().map(str::as_bytes).ok_or_else(none)
}

fn short(what: &str) -> WireError {
    WireError::Protocol(format!("{what} ends early"))
}

pub(crate) fn unexpected(tag: u8, during: &str) -> WireError {
    WireError::Protocol(format!("message {:?} during {during}", char::from(tag)))
}

fn server_error(body: &[u8]) -> ServerError {
    let mut error = ServerError::default();
    for field in body.split(|&b| b == 0) {
        let Some((&kind, value)) = field.split_first() else { continue };
        let value = String::from_utf8_lossy(value).into_owned();
        match kind {
            b'V' => error.severity = value,
            b'S' if error.severity.is_empty() => error.severity = value,
            b'C' => error.code = value,
            b'M' => error.message = value,
            b'D' => error.detail = Some(value),
            b'H' => error.hint = Some(value),
            _ => {}
        }
    }
    error
}

fn data_row(body: &[u8]) -> Result<Vec<Option<String>>> {
    let (count, mut rest) = body.split_first_chunk::<2>().ok_or_else(|| short("row"))?;
    let mut row = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, tail) = rest.split_first_chunk::<4>().ok_or_else(|| short("row"))?;
        let length = i32::from_be_bytes(*length);
        if length < 0 {
            row.push(None);
            rest = tail;
        } else {
            let (value, tail) = tail.split_at_checked(length as usize).ok_or_else(|| short("row"))?;
            row.push(Some(String::from_utf8_lossy(value).into_owned()));
            rest = tail;
        }
    }
    Ok(row)
}
