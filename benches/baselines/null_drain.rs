//! The physical limit of the stream: reads a slot and looks at nothing but each
//! message's kind and its commits' positions. Naps 100 µs before the next read
//! while reads are small, which here is what makes a drain fastest.

use std::time::{Duration, Instant};

use super::wire::{Wire, u64_at};
use crate::Result;

const NAP: Duration = Duration::from_micros(100);
const SMALL: usize = 32 << 10;
const STATUS: Duration = Duration::from_secs(1);

/// What came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Drained {
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    pub(crate) reads: u64,
    /// End of the last commit.
    pub(crate) last: u64,
}

/// Each row's message goes to `row`. Ends at the commit that ends at or behind
/// `until`, or when the server says that it has sent everything before it.
pub(crate) fn drain(
    port: u16,
    database: &str,
    slot: &str,
    until: u64,
    mut row: impl FnMut(&[u8]) -> Result<()>,
) -> Result<Drained> {
    let mut wire = Wire::connect(port, database, true)?;
    wire.stream(slot)?;
    let mut drained = Drained::default();
    let mut inside = false;
    let mut told = Instant::now();
    loop {
        let mut asked = false;
        while let Some((tag, body)) = wire.take() {
            let body = wire.bytes(body);
            if tag != b'd' {
                return Err(format!("message {:?} in the stream", char::from(tag)).into());
            }
            if body[0] == b'k' {
                asked |= body[17] != 0;
                if u64_at(body, 1) >= until && !inside {
                    return Ok(Drained { reads: wire.reads, ..drained });
                }
                continue;
            }
            let message = &body[25..];
            match message[0] {
                b'I' | b'U' | b'D' => {
                    drained.rows += 1;
                    drained.bytes += message.len() as u64;
                    row(message)?;
                }
                b'B' => inside = true,
                b'C' => {
                    inside = false;
                    drained.last = u64_at(message, 10);
                    if drained.last >= until {
                        return Ok(Drained { reads: wire.reads, ..drained });
                    }
                }
                _ => {}
            }
        }
        if asked || told.elapsed() > STATUS {
            wire.status(drained.last)?;
            told = Instant::now();
        }
        if wire.last_read < SMALL {
            std::thread::sleep(NAP);
        }
        wire.fill()?;
    }
}
