//! The physical limit of a snapshot: COPY (FORMAT binary) on n connections over
//! ranges of ctid under one exported snapshot, read and thrown away.

use std::time::{Duration, Instant};

use super::wire::{Wire, u32_at};
use crate::Result;

/// Rows and time; connecting does not count.
pub(crate) fn copy(port: u16, database: &str, table: &str, connections: u64) -> Result<(u64, Duration)> {
    let mut first = Wire::connect(port, database, false)?;
    let pages: u64 = first.scalar(&format!("SELECT pg_relation_size('{table}') / 8192"))?.parse()?;
    first.scalar("BEGIN ISOLATION LEVEL REPEATABLE READ")?;
    let snapshot = first.scalar("SELECT pg_export_snapshot()")?;
    let mut wires = Vec::new();
    for _ in 0..connections {
        let mut wire = Wire::connect(port, database, false)?;
        wire.scalar(&format!("BEGIN ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '{snapshot}'"))?;
        wires.push(wire);
    }
    let started = Instant::now();
    let readers: Vec<_> = wires
        .into_iter()
        .enumerate()
        .map(|(i, mut wire)| {
            let (low, high) = (pages * i as u64 / connections, pages * (i as u64 + 1) / connections);
            let sql = format!(
                "COPY (SELECT * FROM {table} WHERE ctid >= '({low},0)' AND ctid < '({high},0)') TO STDOUT (FORMAT binary)"
            );
            std::thread::spawn(move || read(&mut wire, &sql).map_err(|error| error.to_string()))
        })
        .collect();
    let mut rows = 0;
    for reader in readers {
        rows += reader.join().map_err(|_| "a reader panicked")??;
    }
    Ok((rows, started.elapsed()))
}

fn read(wire: &mut Wire, sql: &str) -> Result<u64> {
    wire.ask(sql)?;
    let mut rows = 0;
    loop {
        match wire.wait()? {
            (b'd', body) => {
                let body = wire.bytes(body);
                // The head may come by itself or with the first row; the trailer is -1.
                let body = if body.starts_with(b"PGCOPY\n") { &body[19 + u32_at(body, 15)..] } else { body };
                rows += u64::from(!body.is_empty() && body != [0xff, 0xff]);
            }
            (b'Z', _) => return Ok(rows),
            _ => {}
        }
    }
}
