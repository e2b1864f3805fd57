//! Logs of every version ever written, in `tests/fixtures/`, read for ever.
//!
//! `log-v1` was written by the generator below. It refuses to write over what
//! is there: a new version gets a folder of its own, and a new generator.
//!
//! ```text
//! HIGHWATER_WRITE_FIXTURES=1 cargo test -p storage -- --ignored write_the_fixtures
//! ```

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use super::history::block_on;
use crate::files::Files;
use crate::outside::{FrameKind, LogFiles};
use crate::segment::crc;
use crate::simulated::Simulated;
use crate::{EventLog, Kind, Log, LogBatch, Micros, Offset, Options, PENDING_KEY, Position, StateChange};

const LOGS: [&str; 4] = ["kinds", "rolled", "torn", "hole"];

fn home() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/log-v1")
}

#[test]
fn logs_of_version_1_are_read() {
    for name in LOGS {
        let folder = home().join(name);
        let expected = fs::read_to_string(home().join(format!("{name}.txt"))).unwrap();
        assert_eq!(listing(&folder), expected, "{name}");
        // Reading has left everything as it was.
        assert_eq!(listing(&folder), expected, "{name}");
    }
}

/// All that is to be seen of a log: by another process, and by its next owner.
fn listing(folder: &Path) -> String {
    let mut out = String::new();
    let files = LogFiles::open(folder).unwrap();
    let standing = files.standing().unwrap().unwrap();
    writeln!(out, "log {} epoch {}", standing.id, standing.epoch).unwrap();
    writeln!(out, "offsets {} to {}, time {}", standing.start, standing.end, standing.event_time.0).unwrap();
    writeln!(out, "position {:?}", standing.position).unwrap();
    list_state(&mut out, &standing.state);
    let report = files.check(|_| ()).unwrap();
    let (segments, frames, records, torn) = (report.segments, report.frames, report.records, report.torn_bytes);
    writeln!(out, "{segments} segments, {frames} frames, {records} records, {torn} bytes torn").unwrap();
    writeln!(out, "\nframes").unwrap();
    // A hole in the tail ends the list.
    let _ = files.frames(|frame| {
        let h = &frame.header;
        let segment = frame.segment.file_name().unwrap().to_string_lossy().into_owned();
        let ends = if h.ends_transaction { "." } else { " " };
        writeln!(
            out,
            "{segment} @{} {}{ends} epoch {} sequence {} offset {} records {} time {} synced {} position {:?} \
             payload {} crc {:08x} chain {:08x}",
            frame.at,
            h.kind.name(),
            h.epoch.0,
            h.sequence,
            h.base,
            h.records,
            h.event_time.0,
            h.synced,
            h.position,
            h.payload_length,
            h.payload_crc,
            h.chain,
        )
        .unwrap();
    });
    writeln!(out, "\nshown to other processes").unwrap();
    let mut cursor = files.read(standing.start).unwrap();
    while let Some(frame) = cursor.next().unwrap() {
        list_frame(&mut out, &frame);
    }
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    let (log, recovered) = Log::open(copy.path(), Options::default()).unwrap();
    writeln!(out, "\nopened: {} bytes cut, {} kept", recovered.cut_bytes, recovered.kept_bytes).unwrap();
    writeln!(out, "log {} epoch {}", log.id(), log.epoch().0).unwrap();
    writeln!(out, "offsets {} to {}, time {}", log.start(), log.high_water(), log.event_time().0).unwrap();
    writeln!(out, "position {:?}", block_on(log.position()).unwrap()).unwrap();
    list_state(&mut out, &log.state());
    let mut reader = crate::reader::Reader::new(log.shared().clone(), log.start().0);
    while reader.fill().unwrap() {
        reader.take().for_each(|frame| list_frame(&mut out, &frame));
    }
    block_on(log.close());
    out
}

fn list_state(out: &mut String, state: &crate::State) {
    for (key, value) in state.iter() {
        writeln!(out, "state {} = {}", key.escape_ascii(), value.escape_ascii()).unwrap();
    }
}

fn list_frame(out: &mut String, frame: &crate::Frame) {
    let crate::Frame { offsets, kind, ends_transaction, event_time, payload, position } = frame;
    let kind = FrameKind::Log(*kind).name();
    let ends = if *ends_transaction { "." } else { " " };
    let text = if payload.len() < 40 { payload.escape_ascii().to_string() } else { format!("{:08x}", crc(payload)) };
    let (start, end, time) = (offsets.start, offsets.end, event_time.0);
    writeln!(out, "{start}..{end} {kind}{ends} time {time} position {position:?} {text}").unwrap();
}

fn batch(kind: Kind, n: u64, records: u32, payload: &str) -> LogBatch {
    LogBatch {
        kind,
        position: Some(Position::new(format!("0/{n:X}").into_bytes()).unwrap()),
        records,
        event_time: Micros(1_700_000_000_000_000 + n as i64),
        payload: payload.as_bytes().to_vec().into(),
        state: Vec::new(),
        ends_transaction: true,
    }
}

fn part(batch: LogBatch) -> LogBatch {
    LogBatch { position: None, ends_transaction: false, ..batch }
}

fn with(batch: LogBatch, key: &[u8], value: Option<&str>) -> LogBatch {
    let value = value.map(|value| value.as_bytes().to_vec().into());
    LogBatch { state: vec![StateChange { key: key.to_vec().into(), value }], ..batch }
}

async fn append(log: &Log<Simulated>, batches: Vec<LogBatch>) {
    for batch in batches {
        log.append(batch).await.unwrap().await.unwrap();
    }
}

fn open(disk: &Simulated, segment_bytes: u64) -> Log<Simulated> {
    let options = Options { segment_bytes, first_offset: Offset(1000), ..Options::default() };
    Log::open_on(disk.clone(), "/log", options).unwrap().0
}

/// Every kind of frame.
async fn kinds() -> Simulated {
    let disk = Simulated::new();
    let log = open(&disk, 1 << 20);
    append(&log, vec![with(batch(Kind::Data, 1, 2, "two rows"), b"tables", Some("orders"))]).await;
    append(&log, vec![part(batch(Kind::Data, 2, 1, "first")), part(batch(Kind::Data, 2, 3, "second"))]).await;
    append(&log, vec![batch(Kind::Data, 2, 1, "last of three")]).await;
    append(&log, vec![with(batch(Kind::Control, 3, 0, ""), b"snapshot", Some("42"))]).await;
    append(&log, vec![part(with(batch(Kind::Data, 4, 5, "never shown"), b"tables", Some("none")))]).await;
    log.abort().await.unwrap();
    append(&log, vec![batch(Kind::Control, 5, 0, "a mark"), batch(Kind::Pending, 6, 2, "held back")]).await;
    append(&log, vec![batch(Kind::Data, 7, 0, ""), batch(Kind::Data, 8, 1, &"a long row ".repeat(40))]).await;
    log.close().await;
    drop(log);
    let log = open(&disk, 1 << 20);
    append(&log, vec![with(batch(Kind::Control, 9, 0, ""), PENDING_KEY, None)]).await;
    append(&log, vec![batch(Kind::Data, 10, 1, "of the second epoch")]).await;
    log.close().await;
    disk
}

/// Several segments, with and without an index beside them.
async fn rolled() -> Simulated {
    let disk = Simulated::new();
    let log = open(&disk, 600);
    for n in 1..20 {
        let key = format!("table/{}", n % 5);
        append(
            &log,
            vec![with(batch(Kind::Data, n, 1 + n as u32 % 3, &format!("row {n}")), key.as_bytes(), Some("x"))],
        )
        .await;
    }
    log.close().await;
    let second = &super::corruption::segments(&disk, Path::new("/log"))[1];
    disk.remove(&second.with_extension("idx")).unwrap();
    disk
}

/// Ends with a group that nobody knows to be durable; where it begins, and the segment.
async fn tail() -> (Simulated, PathBuf, u64) {
    let disk = Simulated::new();
    let log = open(&disk, 1 << 20);
    append(&log, vec![batch(Kind::Data, 1, 1, "durable"), batch(Kind::Data, 2, 1, "durable too")]).await;
    log.close().await;
    drop(log);
    let log = open(&disk, 1 << 20);
    let segment = super::corruption::segments(&disk, Path::new("/log")).remove(0);
    disk.hold();
    let mut commits = Vec::new();
    for n in 3..8 {
        commits.push(log.append(batch(Kind::Data, n, 1, &format!("perhaps {n}"))).await.unwrap());
    }
    let start = disk.read(&segment).unwrap().len();
    disk.release();
    for commit in commits {
        commit.await.unwrap();
    }
    (disk.kill(), segment, start as u64)
}

/// The last frame is not whole.
async fn torn() -> Simulated {
    let (disk, segment, _) = tail().await;
    disk.damage(&segment, |bytes| bytes.truncate(bytes.len() - 5)).unwrap();
    disk
}

/// The second frame of the last group never came to the disk, the later ones did.
async fn hole() -> Simulated {
    let (disk, segment, start) = tail().await;
    let frame = 72 + 3 + 9;
    let range = start as usize + frame..start as usize + 2 * frame;
    disk.damage(&segment, |bytes| bytes[range].fill(0)).unwrap();
    disk
}

#[test]
#[ignore = "writes files into the repository"]
fn write_the_fixtures() {
    if std::env::var_os("HIGHWATER_WRITE_FIXTURES").is_none() {
        return;
    }
    let disks = block_on(async { [kinds().await, rolled().await, torn().await, hole().await] });
    for (name, disk) in LOGS.iter().zip(disks) {
        let folder = home().join(name);
        fs::create_dir_all(home()).unwrap();
        fs::create_dir(&folder).expect("fixtures are never written over");
        for file in disk.list(Path::new("/log")).unwrap() {
            fs::write(folder.join(&file), disk.read(&Path::new("/log").join(&file)).unwrap()).unwrap();
        }
        fs::write(home().join(format!("{name}.txt")), listing(&folder)).unwrap();
    }
}
