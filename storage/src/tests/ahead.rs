//! Zeros written ahead of small groups: nobody takes them for anything else.

use super::history::{FOLDER, block_on, folder};
use crate::files::segment_path;
use crate::outside::LogFiles;
use crate::simulated::Simulated;
use crate::{EventLog, Kind, Log, LogBatch, Micros, Options};

const OPTIONS: fn() -> Options = || Options { segment_bytes: 10_000, ahead: 3000, ..Options::default() };

fn open(disk: &Simulated) -> (Log<Simulated>, crate::log::Recovered) {
    Log::open_on(disk.clone(), FOLDER, OPTIONS()).unwrap()
}

async fn append(log: &Log<Simulated>, size: usize) {
    let batch = LogBatch {
        kind: Kind::Data,
        position: None,
        records: 1,
        event_time: Micros(1),
        payload: vec![0; size].into(),
        state: Vec::new(),
        ends_transaction: true,
    };
    log.append(batch).await.unwrap().await.unwrap();
}

/// Of each segment, the bytes of its file and of its frames. The next one may
/// be begun meanwhile, behind the answer to whoever filled the last.
fn lengths(disk: &Simulated) -> Vec<(u64, u64)> {
    let mut ends = std::collections::BTreeMap::new();
    let count = |frame: crate::outside::RawFrame| {
        ends.insert(frame.segment, frame.at + frame.header.frame_length());
    };
    LogFiles::open_on(disk.clone(), FOLDER).unwrap().frames(count).unwrap();
    ends.into_iter().map(|(path, end)| (disk.read(&path).unwrap().len() as u64, end)).collect()
}

#[test]
fn zeros_stand_behind_the_newest_frame_alone_until_the_log_is_closed() {
    block_on(async {
        let disk = Simulated::new();
        let (log, _) = open(&disk);
        let (mut grown, mut before) = (0, 0);
        for _ in 0..60 {
            append(&log, 300).await;
            let mut all = lengths(&disk);
            let (length, frames) = all.pop().unwrap();
            assert!(frames <= length && length <= 10_000.max(frames), "{frames} of {length}");
            assert!(all.iter().all(|(length, frames)| length == frames), "{all:?}");
            grown += usize::from(length != before);
            before = length;
        }
        let segments = lengths(&disk).len();
        assert!(segments >= 3 && grown <= segments * 5, "{grown} times");
        assert!(log.stats().bytes < lengths(&disk).iter().map(|(length, _)| length).sum());
        assert_eq!(LogFiles::open_on(disk.clone(), FOLDER).unwrap().check(|_| ()).unwrap().torn_bytes, 0);

        let disk = disk.kill();
        let (log, recovered) = open(&disk);
        assert_eq!((recovered.cut_bytes, log.high_water().0), (0, 60));
        append(&log, 300).await;
        log.close().await;
        assert!(lengths(&disk).iter().all(|(length, frames)| length == frames));
    });
}

#[test]
fn large_groups_have_none() {
    block_on(async {
        let disk = Simulated::new();
        let options = Options { segment_bytes: 1 << 20, ..Options::default() };
        let (log, _) = Log::open_on(disk.clone(), FOLDER, options).unwrap();
        append(&log, 20_000).await;
        let all = lengths(&disk);
        assert!(all.iter().all(|(length, frames)| length == frames), "{all:?}");
    });
}

#[test]
fn what_is_damaged_among_zeros_is_torn_and_cut() {
    block_on(async {
        let disk = Simulated::new();
        let (log, _) = open(&disk);
        append(&log, 300).await;
        // Before it can end the file here.
        let disk = disk.kill();
        drop(log);
        let path = segment_path(folder(), 0);
        let (length, frames) = lengths(&disk)[0];
        assert!(length > frames + 500);
        disk.damage(&path, |bytes| bytes[frames as usize + 400] = 7).unwrap();
        assert_eq!(LogFiles::open_on(disk.clone(), FOLDER).unwrap().check(|_| ()).unwrap().torn_bytes, 401);
        let (log, recovered) = open(&disk);
        assert_eq!((recovered.cut_bytes, log.high_water().0), (401, 1));
    });
}
