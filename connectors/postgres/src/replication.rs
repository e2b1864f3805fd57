//! A replication connection: slots, and the stream.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::{BufMut, BytesMut};
use postgres_protocol::message::frontend;
use storage::Micros;

use crate::connection::{Closer, Connection, unexpected};
use crate::error::WireError;
use crate::lsn::Lsn;
use crate::target::Target;

type Result<T, E = WireError> = std::result::Result<T, E>;

/// Microseconds from 1970 to PostgreSQL's 2000-01-01.
pub(crate) const EPOCH_2000: i64 = 946_684_800_000_000;
/// A read that brought less has left the server's sends one by one.
const SMALL_READ: usize = 32 << 10;
/// The walsender sends each row by itself. A reader that wakes for each burns
/// its time, and the walsender's, in tiny reads: while it lags, a short nap
/// before the next one cuts reads twentyfold. Never when idle: latency is untouched.
const NAP: Duration = Duration::from_micros(100);
/// For a stream that is as fast as the server can: waking up every 100 us took a
/// tenth of the processor's time. Not longer: what waits in the socket is a buffer
/// a row, which the kernel then has to find for the walsender anew (at 250 us it
/// was 3 % slower, at 400 us 5 %).
const LONG_NAP: Duration = Duration::from_micros(160);
/// A read behind a nap that brought as much is of such a stream: 20 MB/s.
const FAST_READ: usize = 2 << 10;
/// Small reads in a row, without a wait between, that mean lagging.
const LAGGING: u32 = 4;
/// A read that took longer has waited.
const WAITED: Duration = Duration::from_micros(300);

/// What the server gathers of transactions in progress before it sends the
/// largest: as much is still to be decoded and sent when that one commits. With
/// PostgreSQL's 64 MB that were 200 k rows of benches' orders, and a million of
/// them in the log 1.0 s behind their commit; with this, 0.4 to 0.8. Less
/// stays, if somebody has set it.
const DECODING_MEMORY: &str = "SELECT set_config(name, '16MB', false) FROM pg_settings
 WHERE name = 'logical_decoding_work_mem' AND setting::int8 > 16384";

/// What IDENTIFY_SYSTEM tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SystemIdentity {
    /// Of the cluster, for ever.
    pub(crate) system_identifier: String,
    /// Grows with each promotion.
    pub(crate) timeline: u32,
    /// Where the WAL is flushed to.
    pub(crate) flushed: Lsn,
    /// Timelines before, and where each was left.
    pub(crate) history: Vec<(u32, Lsn)>,
}

/// Something that came on the stream.
#[derive(Debug)]
pub(crate) enum Event<'a> {
    /// WAL data for the output plugin's client.
    Data {
        /// Where the server's WAL ends.
        end: Lsn,
        /// A message of pgoutput.
        message: &'a [u8],
    },
    /// A sign of life.
    Keepalive {
        /// Everything before was sent.
        end: Lsn,
        /// The server wants an answer now.
        reply: bool,
    },
    /// Nothing for now.
    Idle,
}

/// A walsender's other end.
pub(crate) struct Replication {
    connection: Connection,
    small_reads: u32,
    /// More is on its way than was read: reads nap, and do not wait.
    lagging: bool,
    nap: Duration,
    /// Reads from the socket so far.
    pub(crate) reads: u64,
}

impl Replication {
    /// Connects in replication mode.
    pub(crate) fn connect(target: &Target) -> Result<Self> {
        Ok(Self { connection: Connection::connect(target, true)?, small_reads: 0, lagging: false, nap: NAP, reads: 0 })
    }

    #[cfg(test)]
    pub(crate) fn over(connection: Connection) -> Self {
        Self { connection, small_reads: 0, lagging: false, nap: NAP, reads: 0 }
    }

    #[cfg(test)]
    pub(crate) fn room(&self) -> usize {
        self.connection.room()
    }

    /// A handle that ends it from another thread.
    pub(crate) fn closer(&self) -> std::io::Result<Closer> {
        self.connection.closer()
    }

    /// The server's version as a number: 170004 is 17.4.
    pub(crate) fn server_version(&self) -> u32 {
        let text = self.connection.parameter("server_version").unwrap_or("0");
        let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
        let (major, minor) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        major * 10_000 + minor
    }

    /// Which server this is.
    pub(crate) fn identify_system(&mut self) -> Result<SystemIdentity> {
        let row = self.row("IDENTIFY_SYSTEM", 3)?;
        let bad = |what: &str| WireError::Protocol(format!("IDENTIFY_SYSTEM without {what}"));
        let timeline = row[1].parse().map_err(|_| bad("timeline"))?;
        Ok(SystemIdentity {
            system_identifier: row[0].clone(),
            timeline,
            flushed: row[2].parse().map_err(|_| bad("position"))?,
            history: if timeline > 1 { self.timeline_history(timeline)? } else { Vec::new() },
        })
    }

    fn timeline_history(&mut self, timeline: u32) -> Result<Vec<(u32, Lsn)>> {
        let row = self.row(&format!("TIMELINE_HISTORY {timeline}"), 2)?;
        // A line is a timeline, where it was left, and why.
        let switch = |line: &str| {
            let mut words = line.split_whitespace();
            Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
        };
        Ok(row[1].lines().filter_map(switch).collect())
    }

    /// The server's time; of a standby, that of what it has replayed: it knows
    /// nothing of the commits to come.
    pub(crate) fn clock(&mut self) -> Result<Micros> {
        let sql = "SELECT (extract(epoch FROM CASE WHEN pg_is_in_recovery()
                          THEN coalesce(pg_last_xact_replay_timestamp(), (SELECT checkpoint_time FROM pg_control_checkpoint()))
                          ELSE now() END) * 1000000)::int8";
        let row = self.row(sql, 1)?;
        row[0].parse().map(Micros).map_err(|_| WireError::Protocol("a time that is no number".into()))
    }

    /// A slot that goes with this connection, and its snapshot, which lives
    /// until the next command. Waits for transactions in progress.
    pub(crate) fn temporary_slot(&mut self, name: &str) -> Result<(Lsn, String)> {
        self.make_slot(&format!("CREATE_REPLICATION_SLOT {} TEMPORARY LOGICAL pgoutput EXPORT_SNAPSHOT", quoted(name)))
    }

    fn make_slot(&mut self, sql: &str) -> Result<(Lsn, String)> {
        let row = self.row(sql, 3)?;
        let point = row[1].parse().map_err(|_| WireError::Protocol("slot without consistent point".into()))?;
        Ok((point, row[2].clone()))
    }

    /// A slot that stays, and the snapshot of its consistent point, which lives
    /// until this connection's next command. Waits for transactions in progress.
    /// With `failover`, standbys that synchronise slots have it too.
    pub(crate) fn permanent_slot(&mut self, name: &str, failover: bool) -> Result<(Lsn, String)> {
        let options = if failover && self.server_version() >= 170_000 {
            "(SNAPSHOT 'export', FAILOVER true)"
        } else {
            "EXPORT_SNAPSHOT"
        };
        self.make_slot(&format!("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput {options}", quoted(name)))
    }

    fn row(&mut self, sql: &str, columns: usize) -> Result<Vec<String>> {
        let rows = self.connection.query(sql)?;
        let row: Vec<String> =
            rows.into_iter().next().unwrap_or_default().into_iter().map(Option::unwrap_or_default).collect();
        if row.len() < columns {
            return Err(WireError::Protocol(format!("{sql} answered {} columns", row.len())));
        }
        Ok(row)
    }

    /// Begins to stream from `from` on.
    ///
    /// Without `binary 'true'`: 2026-11-25, `pg_recvlogical` on 15 with 300 k rows
    /// of benches' orders, text and binary in turn, best of four each: 1.38 and
    /// 1.31 CPU-seconds of the walsender, 6.35 and 6.47 s. Too little for a second
    /// decoder of the same stream.
    pub(crate) fn start(&mut self, slot: &str, from: Lsn, publications: &[String], protocol: u32) -> Result<()> {
        let names: Vec<String> = publications.iter().map(|name| format!("\"{}\"", name.replace('"', "\"\""))).collect();
        let mut sql = format!(
            "START_REPLICATION SLOT {} LOGICAL {from} (proto_version '{protocol}', publication_names '{}'",
            quoted(slot),
            names.join(",").replace('\'', "''")
        );
        if self.server_version() >= 140_000 {
            sql.push_str(", messages 'true'");
        }
        if protocol >= 2 {
            // Large transactions come while they are in progress: the server need
            // not keep them on its disk, nor send them all at once.
            sql.push_str(", streaming 'on'");
            self.connection.query(DECODING_MEMORY)?;
        }
        sql.push(')');
        let mut out = BytesMut::new();
        frontend::query(&sql, &mut out)?;
        self.connection.send(&out)?;
        match self.connection.wait_long()? {
            (b'W', _) => Ok(()),
            (tag, _) => Err(unexpected(tag, "START_REPLICATION")),
        }
    }

    /// Whether `poll` has something without reading.
    pub(crate) fn is_ready(&self) -> bool {
        self.connection.is_ready()
    }

    /// The next event. Waits a tick at most.
    pub(crate) fn poll(&mut self) -> Result<Event<'_>> {
        let body = loop {
            match self.connection.take()? {
                Some((b'd', body)) => break body,
                // A server that shuts down says only that the command is complete.
                Some((b'c' | b'C', _)) => {
                    let ended = std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the server ended the stream");
                    return Err(ended.into());
                }
                Some((tag, _)) => return Err(unexpected(tag, "the stream")),
                None => {
                    if !self.read()? {
                        return Ok(Event::Idle);
                    }
                }
            }
        };
        let body = self.connection.bytes(body);
        let lsn = |at: usize| body.get(at..at + 8).and_then(Lsn::from_bytes);
        let bad = || WireError::Protocol("a replication message ends early".into());
        match body.first() {
            Some(b'w') => {
                let end = lsn(9).ok_or_else(bad)?;
                Ok(Event::Data { end, message: body.get(25..).ok_or_else(bad)? })
            }
            Some(b'k') => {
                let end = lsn(1).ok_or_else(bad)?;
                Ok(Event::Keepalive { end, reply: *body.get(17).ok_or_else(bad)? != 0 })
            }
            _ => Err(WireError::Protocol("an unknown replication message".into())),
        }
    }

    /// Whether the server is known to have more to send: what was read may wait
    /// for it, for `poll` will not.
    pub(crate) fn is_lagging(&self) -> bool {
        self.lagging
    }

    /// Whether it sends as fast as it can: 20 MB/s and more.
    pub(crate) fn is_fast(&self) -> bool {
        self.lagging && self.nap == LONG_NAP
    }

    /// Reads once; false if there was nothing. Behind that the stream is not lagging.
    fn read(&mut self) -> Result<bool> {
        if self.lagging {
            std::thread::sleep(self.nap);
            if !self.connection.fill()? {
                self.connection.set_waiting(true)?;
                (self.lagging, self.small_reads, self.nap) = (false, 0, NAP);
                return Ok(false);
            }
            self.nap = if self.connection.last_read >= FAST_READ { LONG_NAP } else { NAP };
            self.reads += 1;
            return Ok(true);
        }
        let asked = Instant::now();
        let found = self.connection.fill()?;
        if !found || asked.elapsed() > WAITED {
            self.small_reads = 0;
        } else if self.connection.last_read < SMALL_READ {
            self.small_reads += 1;
        }
        if self.small_reads >= LAGGING {
            self.connection.set_waiting(false)?;
            self.lagging = true;
        }
        self.reads += u64::from(found);
        Ok(found)
    }

    /// Standby status: what came, and what is safe. The server forgets what is
    /// below `flushed`. With `answer` it says at once how far it is.
    pub(crate) fn send_status(&mut self, received: Lsn, flushed: Lsn, answer: bool) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as i64);
        let mut out = BytesMut::with_capacity(39);
        out.put_u8(b'd');
        out.put_u32(38);
        out.put_u8(b'r');
        for lsn in [received, flushed, flushed] {
            out.put_u64(lsn.0);
        }
        out.put_i64(now - EPOCH_2000);
        out.put_u8(u8::from(answer));
        self.connection.send(&out)
    }

    /// Says that no more is wanted.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let mut out = BytesMut::new();
        frontend::copy_done(&mut out);
        self.connection.send(&out)
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
