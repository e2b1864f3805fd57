//! NDJSON and nothing else: ready lines, in memory, through gzip of the sink's
//! level to one file, synced at the end. And readers of our own for what the
//! sink writes, to see that it is all there.

use std::borrow::Cow;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use connector::{Op, Reader};
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;

use crate::Result;
use crate::checksum::Checksum;

/// As the sink hands them to its compressor.
const CHUNK: usize = 128 << 10;

/// All lines of files, in order.
pub(crate) fn read(files: &[PathBuf]) -> Result<Vec<u8>> {
    let mut lines = Vec::new();
    for file in files {
        MultiGzDecoder::new(File::open(file)?).read_to_end(&mut lines)?;
    }
    Ok(lines)
}

/// How many, and the sum of their ids.
pub(crate) fn counted(lines: &[u8]) -> Result<(u64, i64)> {
    let (mut count, mut ids) = (0, 0);
    for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let row: serde_json::Value = serde_json::from_slice(line)?;
        count += 1;
        ids += row["id"].as_i64().ok_or("no id")?;
    }
    Ok((count, ids))
}

/// Writes the lines; how long it took.
pub(crate) fn write(lines: &[u8], to: &Path) -> Result<Duration> {
    let started = Instant::now();
    let mut out = GzEncoder::new(File::create(to)?, Compression::new(2));
    for chunk in lines.chunks(CHUNK) {
        out.write_all(chunk)?;
    }
    out.finish()?.sync_all()?;
    Ok(started.elapsed())
}

/// What Avro files of the workload's table hold.
pub(crate) fn avro(files: &[PathBuf]) -> Result<Checksum> {
    let mut checksum = Checksum::default();
    for file in files {
        let bytes = std::fs::read(file)?;
        let mut is_packed = false;
        let mut header = Reader::new(bytes.strip_prefix(b"Obj\x01").ok_or("no Avro file")?);
        loop {
            let entries = header.block()?;
            if entries == 0 {
                break;
            }
            for _ in 0..entries {
                let name = header.string()?;
                let value = header.bytes()?;
                is_packed |= name == "avro.codec" && value == b"zstandard";
            }
        }
        let (sync, mut rest) = header.rest().split_first_chunk::<16>().ok_or("no sync")?;
        while !rest.is_empty() {
            let mut head = Reader::new(rest);
            let count = head.long()?;
            let packed = head.bytes()?;
            rest = head.rest().strip_prefix(sync.as_slice()).ok_or("a block does not end with the sync")?;
            let block = if is_packed { zstd::decode_all(packed)?.into() } else { Cow::Borrowed(packed) };
            let mut reader = Reader::new(&block);
            for _ in 0..count {
                row(&mut reader, &mut checksum)?;
            }
        }
    }
    Ok(checksum)
}

/// A row of the workload's table: its body, and our columns behind it.
fn row(reader: &mut Reader<'_>, checksum: &mut Checksum) -> Result<()> {
    let start = reader.rest();
    reader.long()?;
    // customer_id, sku, note, amount, currency, qty, paid, created_at, updated_at, uid, attrs.
    for kind in *b"ibbbbicllbb" {
        if reader.present()? {
            match kind {
                b'b' => drop(reader.bytes()?),
                b'c' => drop(reader.boolean()?),
                _ => drop(reader.long()?),
            }
        }
    }
    let body = &start[..start.len() - reader.rest().len()];
    let op = match reader.string()? {
        "insert" => Op::Insert,
        "update" => Op::Update,
        "delete" => Op::Delete,
        _ => Op::Read,
    };
    checksum.row(op, body);
    // Offset, ordinal, position, transaction, time, absent, old key.
    reader.long()?;
    reader.long()?;
    reader.string()?;
    if reader.present()? {
        reader.string()?;
    }
    reader.long()?;
    match (reader.present()?, reader.present()?) {
        (false, false) => Ok(()),
        _ => Err("no row of the workload has an absent column or an old key".into()),
    }
}
