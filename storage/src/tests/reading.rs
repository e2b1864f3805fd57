//! Where reading begins, and how a log is followed.

use std::path::Path;

use futures_util::{FutureExt, StreamExt};

use super::history::block_on;
use crate::outside::LogFiles;
use crate::simulated::Simulated;
use crate::{Error, EventLog, Kind, Log, LogBatch, Micros, Offset, Options, Position};

fn batch(n: u64, records: u32, size: usize) -> LogBatch {
    let mut payload = n.to_le_bytes().to_vec();
    payload.resize(8 + size, 1);
    LogBatch {
        kind: Kind::Data,
        position: Position::new(n.to_le_bytes().to_vec()).ok(),
        records,
        event_time: Micros(n as i64),
        payload: payload.into(),
        state: Vec::new(),
        ends_transaction: true,
    }
}

fn number(payload: &[u8]) -> u64 {
    u64::from_le_bytes(*payload.first_chunk().unwrap())
}

/// Big frames, so that the sparse index has entries, and many without a record.
#[test]
fn a_reader_begins_at_any_offset() {
    block_on(async {
        let disk = Simulated::new();
        let options = Options { segment_bytes: 9 << 20, ..Options::default() };
        let (log, _) = Log::open_on(disk.clone(), "/log", options).unwrap();
        let mut all = Vec::new();
        for n in 0..50 {
            let records = if n % 10 < 6 { 0 } else { 2 };
            let offsets = log.append(batch(n, records, 700 << 10)).await.unwrap().await.unwrap().offsets;
            all.push((n, offsets));
        }
        assert!(log.stats().segments > 3);
        for from in 0..log.high_water().0 {
            let mut reader = crate::reader::Reader::new(log.shared().clone(), from);
            let mut seen = Vec::new();
            while reader.fill().unwrap() {
                seen.extend(reader.take().map(|frame| number(&frame.payload)));
            }
            let wanted = |(_, offsets): &&(u64, crate::OffsetRange)| {
                offsets.end.0 > from || (offsets.start == offsets.end && offsets.start.0 >= from)
            };
            let expected: Vec<u64> = all.iter().filter(wanted).map(|(n, _)| *n).collect();
            assert_eq!(seen, expected, "from {from}");
            if from % 5 == 0 {
                let mut cursor = LogFiles::open_on(disk.clone(), "/log").unwrap().read(Offset(from)).unwrap();
                let first = cursor.next().unwrap().unwrap();
                assert_eq!(number(&first.payload), expected[0], "from {from}, outside");
            }
        }
    });
}

#[test]
fn an_offset_is_found_by_time() {
    block_on(async {
        let disk = Simulated::new();
        let options = Options { segment_bytes: 3000, ..Options::default() };
        let (log, _) = Log::open_on(disk.clone(), "/log", options).unwrap();
        let mut starts = Vec::new();
        for n in 0..60 {
            // A transaction of two frames whose times are apart.
            let first = LogBatch { ends_transaction: false, ..batch(n * 10, 1, 300) };
            let start = log.append(first).await.unwrap().await.unwrap().offsets.start;
            log.append(batch(n * 10 + 5, 1, 30)).await.unwrap().await.unwrap();
            starts.push(start);
        }
        for time in 0..600 {
            let expected = starts.get((time as usize + 4) / 10).copied().unwrap_or(log.high_water());
            assert_eq!(log.offset_at(Micros(time)).unwrap(), expected, "time {time}");
        }
    });
}

/// A power cut may bring back the index of a segment that then went on.
#[test]
fn an_index_of_before_is_not_asked() {
    use crate::index::Sealed;
    block_on(async {
        let disk = Simulated::new();
        let options = Options { segment_bytes: 3000, ..Options::default() };
        let (log, _) = Log::open_on(disk.clone(), "/log", options).unwrap();
        for n in 0..30 {
            log.append(batch(n, 1, 500)).await.unwrap().await.unwrap();
        }
        log.close().await;
        let path = super::corruption::segments(&disk, Path::new("/log")).remove(0);
        let before = disk.copy();
        let mut frames = Vec::new();
        LogFiles::open_on(disk.clone(), "/log").unwrap().frames(|frame| frames.push(frame.at)).unwrap();
        before.damage(&path, |bytes| bytes.truncate(frames[3] as usize)).unwrap();
        Sealed::make(&before, &path).unwrap().unwrap().write(&disk, &path);
        let outside = LogFiles::open_on(disk.clone(), "/log").unwrap();
        for n in 0..30 {
            assert_eq!(outside.offset_at(Micros(n)).unwrap(), Offset(n as u64));
        }
        let (log, _) = Log::open_on(disk, "/log", options).unwrap();
        assert_eq!(log.high_water(), Offset(30));
    });
}

#[test]
fn what_is_no_longer_or_never_was_there_is_out_of_range() {
    block_on(async {
        let disk = Simulated::new();
        let options = Options { segment_bytes: 3000, first_offset: Offset(500), ..Options::default() };
        let (log, _) = Log::open_on(disk.clone(), "/log", options).unwrap();
        log.append(batch(1, 1, 10)).await.unwrap().await.unwrap();
        let below = Box::pin(log.read(Offset(499))).next().await.unwrap();
        assert!(matches!(below, Err(Error::OutOfRange { offset: 499, start: 500, end: 501 })), "{below:?}");
        let outside = LogFiles::open_on(disk, "/log").unwrap().read(Offset(499)).err();
        assert!(matches!(outside, Some(Error::OutOfRange { offset: 499, start: 500, .. })), "{outside:?}");
    });
}

/// On a real disk, by another thread, while segments come and transactions are long.
#[test]
fn a_log_is_followed_from_outside_while_it_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 20_000, ..Options::default() };
    let (log, _) = Log::open(folder.path(), options).unwrap();
    let reader = std::thread::spawn({
        let path = folder.path().to_owned();
        move || {
            let mut cursor = LogFiles::open(path).unwrap().read(Offset(0)).unwrap();
            let mut next = 0;
            while next < 3000 {
                match cursor.next().unwrap() {
                    Some(frame) => {
                        assert_eq!(number(&frame.payload), next);
                        assert_eq!(frame.position, batch(next | 3, 1, 0).position, "that of the whole transaction");
                        next += 1;
                    }
                    None => std::thread::yield_now(),
                }
            }
        }
    });
    block_on(async {
        for n in 0..3000 {
            let batch = LogBatch { ends_transaction: n % 4 == 3, ..batch(n, 1, (n % 7) as usize * 30) };
            let commit = log.append(batch).await.unwrap();
            if n % 5 == 0 {
                commit.await.unwrap();
            }
        }
        log.close().await;
    });
    reader.join().unwrap();
}

/// A transaction that never ended may be durable, and the next start cuts it
/// off: whoever looks just then has found no corruption.
#[test]
fn a_log_is_read_from_outside_while_starts_cut_what_was_never_finished() {
    let folder = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(folder.path(), Options::default()).unwrap();
    block_on(log.close());
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let read = |each: &mut dyn FnMut()| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                each();
            }
            each();
        };
        let path = folder.path();
        let looking = scope.spawn(move || {
            read(&mut || {
                LogFiles::open(path).unwrap().standing().unwrap().unwrap();
            });
        });
        let following = scope.spawn(move || {
            let mut cursor = LogFiles::open(path).unwrap().read(Offset(0)).unwrap();
            let mut next = 0;
            read(&mut || {
                while let Some(frame) = cursor.next().unwrap() {
                    assert_eq!(number(&frame.payload), next, "only what was finished");
                    next += 1;
                }
            });
            next
        });
        for n in 0..100 {
            let (log, _) = Log::open(folder.path(), Options::default()).unwrap();
            block_on(async {
                log.append(batch(n, 1, 100)).await.unwrap().await.unwrap();
                for part in 0..4 {
                    let part = LogBatch { ends_transaction: false, ..batch(7_000 + part, 1, 50_000) };
                    log.append(part).await.unwrap().await.unwrap();
                }
                log.close().await;
            });
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        looking.join().unwrap();
        assert_eq!(following.join().unwrap(), 100);
    });
}

#[test]
fn a_log_has_one_writer() {
    let folder = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(folder.path(), Options::default()).unwrap();
    assert!(matches!(Log::open(folder.path(), Options::default()), Err(Error::Locked(_))));
    let mut frames = Box::pin(log.read(Offset(0)));
    block_on(async { assert!(frames.next().now_or_never().is_none()) });
    block_on(log.close());
    // Whoever still reads does not keep the next one out.
    let (again, _) = Log::open(folder.path(), Options::default()).unwrap();
    assert_eq!(again.id(), log.id());
    assert!(again.epoch() > log.epoch());
    drop(frames);
    block_on(again.close());
}

#[test]
fn a_log_can_be_read_by_who_may_not_write_it() {
    use crate::files::{Disk, Files, LogFile};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    Disk.create(&path).unwrap().write_at(b"content", 0).unwrap();
    let mut only_read = std::fs::metadata(&path).unwrap().permissions();
    only_read.set_readonly(true);
    std::fs::set_permissions(&path, only_read).unwrap();
    let file = Disk.open(&path).unwrap();
    assert_eq!(file.length().unwrap(), 7);
    assert!(file.write_at(b"x", 0).is_err());
}

#[test]
fn an_offset_is_taken_to_where_its_transaction_begins_and_what_follows_is_measured() {
    block_on(async {
        let options = Options { segment_bytes: 3 << 20, ..Options::default() };
        let (log, _) = Log::open_on(Simulated::new(), "/log", options).unwrap();
        let mut begins = Vec::new();
        for n in 0..20 {
            let first = log.high_water();
            for part in 0..3 {
                let open = LogBatch { ends_transaction: part == 2, ..batch(n, 2, 200 << 10) };
                log.append(open).await.unwrap().await.unwrap();
            }
            begins.extend([first; 6]);
        }
        log.abort().await.unwrap();
        for (offset, begin) in begins.iter().enumerate() {
            assert_eq!(log.transaction_at(Offset(offset as u64)).unwrap(), *begin, "{offset}");
        }
        assert_eq!(log.transaction_at(log.high_water()).unwrap(), log.high_water());
        let (all, mut before) = (log.stats().bytes, u64::MAX);
        for offset in 0..=log.high_water().0 {
            let bytes = log.bytes_from(Offset(offset)).unwrap();
            assert!(bytes <= before, "{offset}");
            let about = (log.high_water().0 - offset) * (100 << 10);
            assert!(bytes + (1 << 20) >= about && bytes <= about + (2 << 20), "{offset}: {bytes}, about {about}");
            before = bytes;
        }
        assert!(log.bytes_from(Offset(0)).unwrap() <= all);
        assert_eq!(log.bytes_from(log.high_water()).unwrap(), 0);
    });
}
