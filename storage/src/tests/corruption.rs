//! Every length a file may be cut to, every bit that may flip, and smears: what
//! was durable is refused by name, what may be torn is cut, and nothing that
//! was not written is ever shown.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::history::{Life, Model, Step, block_on, folder, options, read_all};
use crate::files::{Files, segment_bases, segment_path};
use crate::outside::{FrameKind, LogFiles, RawFrame};
use crate::simulated::{Chance, Simulated};
use crate::{Error, Frame, Kind, Log};

/// A log that was left behind by a killed process, and what is known of it.
struct Truth {
    disk: Simulated,
    segments: Vec<PathBuf>,
    frames: Vec<RawFrame>,
    /// Of `frames`, those that a reader sees, with what it sees.
    shown: Vec<(usize, Frame)>,
}

impl Truth {
    fn new() -> Self {
        // On a busy machine an idle frame may come in between: not that life, then.
        std::iter::repeat_with(Self::one)
            .find(|truth| {
                let last = &truth.frames[truth.frames.len() - 1].header;
                truth.segments.len() == 3 && last.sequence >= last.synced + 2
            })
            .unwrap()
    }

    fn one() -> Self {
        let append = |frames, size, each, kind| Step::Append { frames, size, each, kind, state: Some(frames as u8) };
        let steps = [
            append(1, 20, false, Kind::Data),
            append(2, 30, true, Kind::Data),
            Step::Begin(1, 20),
            append(1, 20, false, Kind::Pending),
            append(1, 1000, false, Kind::Data),
            append(3, 30, true, Kind::Data),
            append(1, 0, false, Kind::Control),
            append(2, 1000, false, Kind::Data),
            Step::Close,
            append(1, 20, false, Kind::Data),
            append(3, 30, true, Kind::Data),
            Step::State(2),
            Step::Group(3),
            append(2, 10, false, Kind::Data),
        ];
        let options = crate::Options { segment_bytes: 2300, ..options() };
        let mut life = Life::new(Simulated::new(), Model::default(), options);
        block_on(life.live(&steps)).unwrap();
        let disk = life.disk.kill();
        let segments = segments(&disk, folder());
        let mut frames = Vec::new();
        files(&disk).frames(|frame| frames.push(frame)).unwrap();
        let (mut shown, mut inside) = (Vec::new(), Vec::new());
        for (i, frame) in frames.iter().enumerate() {
            match frame.header.kind {
                FrameKind::Abort => inside.clear(),
                FrameKind::Log(_) => inside.push(i),
                _ => {}
            }
            if frame.header.ends_transaction {
                shown.append(&mut inside);
            }
        }
        let (log, _) = Log::open_on(disk.copy(), folder(), options).unwrap();
        let read = block_on(read_all(&log)).unwrap();
        assert_eq!(shown.len(), read.len());
        Self { disk, segments, frames, shown: shown.into_iter().zip(read).collect() }
    }

    fn newest(&self) -> &Path {
        &self.segments[self.segments.len() - 1]
    }

    fn length(&self, path: &Path) -> usize {
        self.disk.read(path).unwrap().len()
    }

    /// Of the frames of a segment that are touched, the first and all.
    fn touched(&self, path: &Path, damaged: &Range<usize>) -> Vec<usize> {
        let touched = |frame: &RawFrame| {
            let range = frame.at as usize..(frame.at + frame.header.frame_length()) as usize;
            frame.segment == path && range.start < damaged.end && damaged.start < range.end
        };
        (0..self.frames.len()).filter(|&i| touched(&self.frames[i])).collect()
    }

    /// The greatest `synced` that can still be read in a segment.
    fn told(&self, path: &Path, damaged: &Range<usize>) -> u64 {
        let whole = |frame: &&RawFrame| {
            let head = frame.header.frame_length() - u64::from(frame.header.payload_length);
            let range = frame.at as usize..(frame.at + head) as usize;
            frame.segment == path && !(range.start < damaged.end && damaged.start < range.end)
        };
        self.frames.iter().filter(whole).map(|frame| frame.header.synced).max().unwrap_or(0)
    }

    /// How many of the frames shown lie before a frame; in whole transactions, or all.
    fn before(&self, frame: usize, whole: bool) -> usize {
        let ends = |i: &usize| self.frames[*i].header.ends_transaction;
        let end = if whole { (0..frame).rev().find(ends).map_or(0, |i| i + 1) } else { frame };
        self.shown.iter().take_while(|(i, _)| *i < end).count()
    }

    /// Changes a file, and judges what everyone makes of it.
    fn judge(&self, path: &Path, damaged: Range<usize>, damage: impl FnOnce(&mut Vec<u8>)) -> Result<(), String> {
        let disk = self.disk.copy();
        disk.damage(path, damage).unwrap();
        let touched = self.touched(path, &damaged);
        let Some(&first) = touched.first() else { return Err("nothing is there to be damaged".into()) };
        let newest = path == self.newest();
        let refused = !newest
            || self.frames[first].header.kind == FrameKind::Head
            || self.told(path, &damaged) > self.frames[first].header.sequence;
        let (least, most) = (self.before(first, true), self.before(first, false));

        let checked = files(&disk).check(|_| ());
        match (refused, checked) {
            (true, Err(error)) => self.names(&error, path, &touched)?,
            (false, Ok(report)) if report.torn_bytes > 0 || damaged.end == usize::MAX => {}
            (_, checked) => return Err(format!("check: {checked:?} where refused is {refused}")),
        }

        let (seen, error) = see_outside(&disk);
        self.is_prefix(&seen, if newest { 0 } else { least }, most)?;
        if refused {
            self.names(&error.ok_or("nothing is refused outside")?, path, &touched)?;
        } else if let Some(error) = error {
            return Err(format!("refused outside: {error:?}"));
        }

        match Log::open_on(disk.clone(), folder(), options()) {
            Err(error) if refused => self.names(&error, path, &touched)?,
            Ok((log, _)) if !refused => {
                let read = block_on(read_all(&log)).map_err(|error| format!("cannot be read: {error:?}"))?;
                self.is_prefix(&read, least, least)?;
            }
            // A sealed segment is not read as the log is opened, only its head and length.
            Ok((log, _)) if !newest => {
                let (read, error) = read_on(&log);
                self.is_prefix(&read, least, most)?;
                self.names(&error.ok_or("nothing is refused")?, path, &touched)?;
            }
            opened => return Err(format!("opened: {opened:?} where refused is {refused}")),
        }
        Ok(())
    }

    /// The error says where.
    fn names(&self, error: &Error, path: &Path, touched: &[usize]) -> Result<(), String> {
        let right = match error {
            Error::Corrupt { path: named, at, .. } => {
                let here = |i: &usize| self.frames[*i].at == *at;
                named == path && touched.iter().any(here)
            }
            // Whole frames are gone from the end of a sealed one: the next one tells.
            Error::Gap { path: named, .. } => self.segments.windows(2).any(|pair| pair[0] == path && pair[1] == *named),
            _ => false,
        };
        if right { Ok(()) } else { Err(format!("{error:?} instead of {touched:?}")) }
    }

    fn is_prefix(&self, seen: &[Frame], least: usize, most: usize) -> Result<(), String> {
        if seen.len() < least || seen.len() > most {
            return Err(format!("{} frames are shown instead of {least} to {most}", seen.len()));
        }
        let differs = |(seen, (_, known)): &(&Frame, &(usize, Frame))| {
            (seen.offsets, &seen.payload, &seen.position) != (known.offsets, &known.payload, &known.position)
        };
        match seen.iter().zip(&self.shown).find(differs) {
            Some((wrong, _)) => Err(format!("{wrong:?} was never written")),
            None => Ok(()),
        }
    }
}

/// The files of a log, oldest first.
pub(super) fn segments(disk: &Simulated, folder: &Path) -> Vec<PathBuf> {
    let bases = segment_bases(&disk.list(folder).unwrap());
    bases.into_iter().map(|base| segment_path(folder, base)).collect()
}

fn files(disk: &Simulated) -> LogFiles<Simulated> {
    LogFiles::open_on(disk.clone(), folder()).unwrap()
}

fn see_outside(disk: &Simulated) -> (Vec<Frame>, Option<Error>) {
    let mut seen = Vec::new();
    let files = files(disk);
    let cursor = files.start().and_then(|start| files.read(start.unwrap_or_default()));
    let mut cursor = match cursor {
        Ok(cursor) => cursor,
        Err(error) => return (seen, Some(error)),
    };
    loop {
        match cursor.next() {
            Ok(Some(frame)) => seen.push(frame),
            Ok(None) => return (seen, None),
            Err(error) => return (seen, Some(error)),
        }
    }
}

fn read_on(log: &Log<Simulated>) -> (Vec<Frame>, Option<Error>) {
    let mut reader = crate::reader::Reader::new(log.shared().clone(), log.start().0);
    let mut read = Vec::new();
    loop {
        let filled = reader.fill();
        read.extend(reader.take());
        match filled {
            Ok(true) => {}
            Ok(false) => return (read, None),
            Err(error) => return (read, Some(error)),
        }
    }
}

#[test]
fn every_bit_that_flips_is_seen() {
    let truth = Truth::new();
    let mut flips = 0;
    for path in &truth.segments {
        for at in 0..truth.length(path) {
            for bit in 0..8 {
                flips += 1;
                let judged = truth.judge(path, at..at + 1, |bytes| bytes[at] ^= 1 << bit);
                judged.unwrap_or_else(|wrong| panic!("bit {bit} of byte {at} of {}: {wrong}", path.display()));
            }
        }
    }
    println!("{flips} bits flipped");
}

#[test]
fn every_length_is_seen() {
    let truth = Truth::new();
    for path in &truth.segments {
        for length in 0..truth.length(path) {
            // As far as there is anything, all behind the cut is touched.
            let judged = truth.judge(path, length..usize::MAX, |bytes| bytes.truncate(length));
            judged.unwrap_or_else(|wrong| panic!("{} cut to {length}: {wrong}", path.display()));
        }
    }
}

#[test]
fn a_frame_that_is_gone_or_there_twice_is_seen() {
    let truth = Truth::new();
    for (i, frame) in truth.frames.iter().enumerate() {
        let range = frame.at as usize..(frame.at + frame.header.frame_length()) as usize;
        if frame.header.kind != FrameKind::Head {
            // Without the very last, the log is only shorter.
            let end = if i + 1 == truth.frames.len() { usize::MAX } else { range.end };
            let judged = truth.judge(&frame.segment, range.start..end, |bytes| drop(bytes.drain(range.clone())));
            judged.unwrap_or_else(|wrong| panic!("without frame {i}: {wrong}"));
        }
        if truth.frames.get(i + 1).is_some_and(|next| next.segment == frame.segment) {
            let judged = truth.judge(&frame.segment, range.end..range.end + 1, |bytes| {
                let twice = bytes[range.clone()].to_vec();
                bytes.splice(range.end..range.end, twice);
            });
            judged.unwrap_or_else(|wrong| panic!("frame {i} twice: {wrong}"));
        }
    }
}

#[test]
fn smears_are_seen() {
    let truth = Truth::new();
    let mut chance = Chance(7);
    for round in 0..8000 {
        let path = &truth.segments[chance.below(truth.segments.len())];
        let at = chance.below(truth.length(path));
        let end = (at + 1 + chance.below(64)).min(truth.length(path));
        let what = chance.below(3);
        let judged = truth.judge(path, at..end, |bytes| {
            for (i, byte) in bytes[at..end].iter_mut().enumerate() {
                // Each byte differs from what it was.
                *byte = match what {
                    0 => !*byte,
                    1 => *byte ^ (1 + chance.below(255)) as u8,
                    _ => *byte ^ (1 << (i % 8)),
                };
            }
        });
        judged.unwrap_or_else(|wrong| panic!("round {round}, {at}..{end} of {}: {wrong}", path.display()));
    }
}

#[test]
fn an_index_is_never_trusted() {
    let truth = Truth::new();
    for segment in &truth.segments[..2] {
        let path = segment.with_extension("idx");
        let length = truth.length(&path);
        for damage in 0..length * 9 {
            let disk = truth.disk.copy();
            let (at, bit) = (damage / 9, damage % 9);
            disk.damage(&path, |bytes| if bit == 8 { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }).unwrap();
            let (log, _) = Log::open_on(disk, folder(), options()).unwrap();
            let (read, error) = read_on(&log);
            assert!(error.is_none(), "{error:?}");
            truth.is_prefix(&read, truth.shown.len(), truth.shown.len()).unwrap();
        }
    }
}

#[test]
fn a_sealed_segment_without_an_index_is_read_before_it_is_trusted() {
    let truth = Truth::new();
    for path in &truth.segments[..2] {
        truth.disk.remove(&path.with_extension("idx")).unwrap();
    }
    for path in &truth.segments[..2] {
        for at in 0..truth.length(path) {
            let disk = truth.disk.copy();
            disk.damage(path, |bytes| bytes[at] ^= 0x10).unwrap();
            let error = Log::open_on(disk, folder(), options()).unwrap_err();
            truth.names(&error, path, &truth.touched(path, &(at..at + 1))).unwrap();
        }
    }
}

#[test]
fn a_segment_that_is_gone_is_a_gap() {
    let truth = Truth::new();
    truth.disk.remove(&truth.segments[1]).unwrap();
    let error = Log::open_on(truth.disk.copy(), folder(), options()).unwrap_err();
    assert!(matches!(&error, Error::Gap { path, .. } if *path == truth.segments[2]), "{error:?}");
    assert!(matches!(files(&truth.disk).check(|_| ()), Err(Error::Gap { .. })));
    assert!(matches!(see_outside(&truth.disk).1, Some(Error::Gap { .. })));
}

#[test]
fn a_row_that_holds_a_log_is_no_proof_against_a_torn_tail() {
    let truth = Truth::new();
    let batch = crate::LogBatch {
        kind: Kind::Data,
        position: None,
        records: 1,
        event_time: crate::Micros(0),
        // It must not end with zeros, which would not count as torn.
        payload: [truth.disk.read(truth.newest()).unwrap(), vec![1]].concat().into(),
        state: Vec::new(),
        ends_transaction: true,
    };
    // Again, should an idle frame tell that it was durable.
    let (disk, last) = std::iter::repeat_with(|| {
        let disk = Simulated::new();
        let (log, _) = Log::open_on(disk.clone(), folder(), crate::Options::default()).unwrap();
        block_on(async { crate::EventLog::append(&log, batch.clone()).await.unwrap().await }).unwrap();
        let disk = disk.kill();
        let mut last = None;
        files(&disk).frames(|frame| last = Some(frame)).unwrap();
        (disk, last.unwrap())
    })
    .find(|(_, last)| last.header.kind == FrameKind::Log(Kind::Data))
    .unwrap();
    disk.damage(&last.segment, |bytes| bytes[last.at as usize] ^= 1).unwrap();
    assert_eq!(files(&disk).check(|_| ()).unwrap().torn_bytes, last.header.frame_length());
    let (_log, recovered) = Log::open_on(disk, folder(), crate::Options::default()).unwrap();
    assert_eq!(recovered.cut_bytes, last.header.frame_length());
}
