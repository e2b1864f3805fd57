//! A log's life on a simulated disk, and the model of what it must hold.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;

use crate::outside::LogFiles;
use crate::simulated::{Chance, Simulated, Survival};
use crate::{EventLog, Frame, Kind, Log, LogBatch, LogId, Micros, Options, PENDING_KEY, Position, StateChange};

/// Two folders that are not there yet: their names have to be made durable too.
pub(super) const FOLDER: &str = "/data/shop";

pub(super) fn folder() -> &'static Path {
    Path::new(FOLDER)
}

/// Small segments, so that a short life has many.
pub(super) fn options() -> Options {
    Options { segment_bytes: 3000, ..Options::default() }
}

pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    }
    RUNTIME.with(|runtime| runtime.block_on(future))
}

/// A transaction as it was appended.
#[derive(Clone, Debug)]
pub(super) struct Transaction {
    frames: Vec<LogBatch>,
    /// Known once it was acknowledged or seen.
    offsets: Option<(u64, u64)>,
}

/// What a log must hold, and may hold.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    id: Option<LogId>,
    /// The greatest seen.
    epoch: u64,
    /// Acknowledged or shown: there for ever.
    known: Vec<Transaction>,
    /// Appended since, in order: the first so many of them may be there.
    hoped: Vec<Transaction>,
    /// The greatest that the log was told.
    floor: u64,
    /// What lies below may have been removed by now.
    trimmed: u64,
}

/// A frame, for comparing.
type Shape = (Kind, bool, Bytes, u32, Option<Position>);

/// A log's state, for comparing.
type Entries = BTreeMap<Bytes, Bytes>;

/// Frames, each with its offset if that is known; state; position.
type Expected = (Vec<(Shape, Option<u64>)>, Entries, Option<Position>);

impl Model {
    /// The frames, the state and the position if the first `hoped` are there.
    fn expected(&self, hoped: usize, found: &[Frame]) -> Expected {
        let (mut frames, mut state, mut position) = (Vec::new(), Entries::new(), None);
        let all = self.known.iter().chain(&self.hoped[..hoped]);
        let total: usize = all.clone().flat_map(|tx| &tx.frames).filter(|frame| is_read(frame)).count();
        for tx in all {
            let commit = tx.frames.last().and_then(|frame| frame.position.clone());
            let mut offset = tx.offsets.map(|(start, _)| start);
            for frame in &tx.frames {
                if is_read(frame) {
                    // Where there is no acknowledgement, the log itself says what it made of it.
                    let seen = (found.len() + frames.len()).checked_sub(total).and_then(|i| found.get(i));
                    offset = offset.or(seen.map(|frame| frame.offsets.start.0));
                    let shape =
                        (frame.kind, frame.ends_transaction, frame.payload.clone(), frame.records, commit.clone());
                    frames.push((shape, tx.offsets.and(offset)));
                }
                for change in &frame.state {
                    match &change.value {
                        Some(value) => state.insert(change.key.clone(), value.clone()),
                        None => state.remove(&change.key),
                    };
                }
                if frame.kind == Kind::Pending && !state.contains_key(PENDING_KEY) {
                    state.insert(PENDING_KEY.into(), offset.unwrap_or(0).to_string().into());
                }
                offset = offset.map(|offset| offset + u64::from(frame.records));
            }
            position = commit.or(position);
        }
        (frames, state, position)
    }

    /// The first offset held back.
    fn pending(&self) -> u64 {
        pending(&self.expected(0, &[]).1)
    }

    /// How many of the hoped for are there; else what is wrong.
    fn compare(&self, found: &[Frame], state: &Entries, position: &Option<Position>) -> Result<usize, String> {
        let mut why = String::new();
        for hoped in (0..=self.hoped.len()).rev() {
            let (frames, expected_state, expected_position) = self.expected(hoped, found);
            let trimmed = self.trimmed.max(self.floor.min(pending(&expected_state)));
            why = match matches(&frames, found, trimmed) {
                Err(wrong) => wrong,
                Ok(()) if *state != expected_state => format!("state {state:?} instead of {expected_state:?}"),
                Ok(()) if *position != expected_position => format!("position {position:?} not {expected_position:?}"),
                Ok(()) => return Ok(hoped),
            };
        }
        Err(why)
    }
}

fn matches(expected: &[(Shape, Option<u64>)], found: &[Frame], trimmed: u64) -> Result<(), String> {
    let Some(gone) = expected.len().checked_sub(found.len()) else {
        return Err(format!("{} frames instead of {}", found.len(), expected.len()));
    };
    if expected[..gone]
        .iter()
        .any(|((_, _, _, records, _), start)| start.is_none_or(|start| start + u64::from(*records) > trimmed))
    {
        return Err(format!("{} frames are lost ({} are there)", gone, found.len()));
    }
    let mut end = 0;
    for ((shape, offset), frame) in expected[gone..].iter().zip(found) {
        let seen = (frame.kind, frame.ends_transaction, frame.payload.clone(), records(frame), frame.position.clone());
        if seen != *shape {
            return Err(format!("frame {seen:?} instead of {shape:?}"));
        }
        if offset.is_some_and(|offset| offset != frame.offsets.start.0) || frame.offsets.start.0 < end {
            return Err(format!("offset {} instead of {offset:?}, after {end}", frame.offsets.start));
        }
        end = frame.offsets.end.0;
    }
    Ok(())
}

fn pending(state: &Entries) -> u64 {
    let value = state.get(PENDING_KEY).map(|value| String::from_utf8_lossy(value).parse());
    value.and_then(Result::ok).unwrap_or(u64::MAX)
}

fn records(frame: &Frame) -> u32 {
    (frame.offsets.end.0 - frame.offsets.start.0) as u32
}

/// Whether a reader sees it: state alone is not an event.
fn is_read(batch: &LogBatch) -> bool {
    batch.records > 0 || !batch.payload.is_empty() || batch.state.is_empty()
}

/// All that a log shows.
pub(super) async fn read_all(log: &Log<Simulated>) -> Result<Vec<Frame>, crate::Error> {
    let mut reader = crate::reader::Reader::new(log.shared().clone(), log.start().0);
    let mut frames = Vec::new();
    while reader.fill()? {
        frames.extend(reader.take());
    }
    Ok(frames)
}

/// Opens what is on the disk and compares it with the model, which learns what was found.
pub(super) async fn open(disk: &Simulated, model: &mut Model, options: Options) -> Result<Log<Simulated>, String> {
    let (log, _) = Log::open_on(disk.clone(), FOLDER, options).map_err(|error| format!("refused: {error:?}"))?;
    if model.id.replace(log.id()).is_some_and(|id| id != log.id()) {
        return Err("another log".into());
    }
    if log.epoch().0 <= model.epoch {
        return Err(format!("epoch {} again", log.epoch().0));
    }
    model.epoch = log.epoch().0;
    let found = read_all(&log).await.map_err(|error| format!("cannot be read: {error:?}"))?;
    let state = log.state().iter().map(|(k, v)| (Bytes::copy_from_slice(k), Bytes::copy_from_slice(v))).collect();
    let position = log.position().await.map_err(|error| error.to_string())?;
    let hoped = model.compare(&found, &state, &position)?;
    let shown = model.hoped.drain(..).take(hoped);
    model.known.extend(shown);
    // What was seen now keeps its offsets from now on.
    let mut frames = found.iter().rev();
    for tx in model.known.iter_mut().rev() {
        let mut read = tx.frames.iter().filter(|frame| is_read(frame)).filter_map(|_| frames.next());
        let (last, first) = (read.next(), read.last());
        if let (None, Some(last)) = (tx.offsets, last) {
            tx.offsets = Some((first.unwrap_or(last).offsets.start.0, last.offsets.end.0));
        }
    }
    check_outside(disk, &found)?;
    Ok(log)
}

/// Another process sees the same, up to what it can know to be durable.
fn check_outside(disk: &Simulated, found: &[Frame]) -> Result<(), String> {
    let files = LogFiles::open_on(disk.clone(), folder()).map_err(|error| error.to_string())?;
    files.check(|_| ()).map_err(|error| format!("check: {error:?}"))?;
    let start = files.start().map_err(|error| error.to_string())?.unwrap_or_default();
    let mut cursor = files.read(start).map_err(|error| format!("outside: {error:?}"))?;
    let mut found = found.iter();
    while let Some(frame) = cursor.next().map_err(|error| format!("outside: {error:?}"))? {
        if found.next().is_none_or(|known| (known.offsets, &known.payload) != (frame.offsets, &frame.payload)) {
            return Err(format!("outside, {frame:?} is seen"));
        }
    }
    Ok(())
}

/// A step of a log's life.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// A transaction of so many frames; each awaited, or only the last.
    Append {
        frames: usize,
        size: usize,
        each: bool,
        kind: Kind,
        state: Option<u8>,
    },
    /// Transactions that are in one group.
    Group(usize),
    /// State alone.
    State(u8),
    /// A transaction that is not ended, of frames of this size.
    Begin(usize, usize),
    Abort,
    /// Everything so far may go, whatever its age.
    Trim,
    /// Nothing is held back any more.
    Release,
    /// The same, and everything may go, before that is durable.
    ReleaseAndTrim,
    Close,
    Kill,
    Cut(Survival),
}

/// A log being lived.
pub(super) struct Life {
    pub(super) disk: Simulated,
    pub(super) options: Options,
    pub(super) model: Model,
    /// The model as of so many changes of the disk.
    pub(super) marks: Vec<(usize, Model)>,
    log: Option<Log<Simulated>>,
    inside: bool,
    number: u64,
    /// Of the first operation that failed since the log was opened.
    pub(super) failure: Option<crate::Error>,
}

impl Life {
    pub(super) fn new(disk: Simulated, model: Model, options: Options) -> Self {
        let number = (model.known.len() + model.hoped.len()) as u64 * 1000;
        let marks = vec![(0, model.clone())];
        Self { disk, options, model, marks, log: None, inside: false, number, failure: None }
    }

    /// The model as of a number of changes.
    pub(super) fn model_at(&self, changes: usize) -> &Model {
        let i = self.marks.partition_point(|(mark, _)| *mark <= changes);
        &self.marks[i - 1].1
    }

    fn mark(&mut self) {
        let removable = self.model.floor.min(self.model.pending());
        self.model.trimmed = self.model.trimmed.max(removable);
        self.marks.push((self.disk.changes(), self.model.clone()));
    }

    pub(super) async fn open(&mut self) -> Result<(), String> {
        let log = open(&self.disk, &mut self.model, self.options).await?;
        self.log = Some(log);
        (self.inside, self.failure) = (false, None);
        self.mark();
        Ok(())
    }

    pub(super) async fn live(&mut self, steps: &[Step]) -> Result<(), String> {
        for step in steps {
            self.step(step).await.map_err(|wrong| format!("{step:?}: {wrong}"))?;
        }
        Ok(())
    }

    pub(super) async fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Kill => self.end(self.disk.kill()).await,
            Step::Cut(survival) => self.end(self.disk.power_cut(*survival)).await,
            Step::Close => {
                if let Some(log) = &self.log {
                    log.close().await;
                }
                self.end(self.disk.clone()).await
            }
            // Nothing more can be asked of a log that has failed.
            _ if self.failure.is_some() => Ok(()),
            step => {
                if self.log.is_none() {
                    self.open().await?;
                }
                if let Some(log) = self.log.clone() {
                    self.work(log, step).await;
                }
                Ok(())
            }
        }
    }

    /// Drops the log; the next step opens it again, on what is left.
    async fn end(&mut self, disk: Simulated) -> Result<(), String> {
        self.disk = disk;
        self.log = None;
        self.open().await
    }

    async fn work(&mut self, log: Log<Simulated>, step: &Step) {
        let begins = matches!(step, Step::Begin(..));
        if self.inside && !begins {
            self.failure = log.abort().await.err();
            self.inside = false;
            if self.failure.is_some() {
                return;
            }
        }
        match step {
            Step::Append { frames, size, each, kind, state } => {
                let mut tx = self.transaction(*frames, *size, *kind);
                if let Some(key) = state {
                    tx.frames[0].state.push(change(*key, self.number));
                }
                self.append(&log, vec![tx], *each).await;
            }
            Step::Group(n) => {
                let group = (0..*n).map(|i| self.transaction(1, 40 + 300 * (i % 3), Kind::Data)).collect();
                self.append(&log, group, false).await;
            }
            Step::State(key) => {
                self.number += 1;
                let mut batch = batch(Kind::Control, Bytes::new(), 0, self.number);
                batch.state.push(change(*key, self.number));
                self.append(&log, vec![Transaction { frames: vec![batch], offsets: None }], false).await;
            }
            Step::Begin(frames, size) => {
                for mut frame in self.transaction(*frames, *size, Kind::Data).frames {
                    (frame.ends_transaction, frame.position) = (false, None);
                    frame.state.push(change(98, 1));
                    self.failure = wait(&log, vec![frame]).await.err();
                    if self.failure.is_some() {
                        return;
                    }
                }
                self.inside = true;
            }
            Step::Trim => {
                self.model.floor = log.high_water().0;
                self.mark();
                log.retain_from(log.high_water());
                self.failure = log.trim(log.high_water()).await.err();
            }
            Step::Release => {
                let release = self.release();
                self.append(&log, vec![Transaction { frames: vec![release], offsets: None }], false).await;
            }
            Step::ReleaseAndTrim => {
                let release = self.release();
                self.model.hoped.push(Transaction { frames: vec![release.clone()], offsets: None });
                self.model.floor = log.high_water().0;
                self.mark();
                log.retain_from(log.high_water());
                self.disk.hold();
                let appended = async { log.append(release).await?.await };
                let go = async { self.disk.release() };
                let (appended, trimmed, ()) = tokio::join!(appended, log.trim(log.high_water()), go);
                self.failure = appended.err().or(trimmed.err());
                if self.failure.is_none() {
                    self.model.known.append(&mut self.model.hoped);
                }
                self.mark();
            }
            Step::Abort | Step::Close | Step::Kill | Step::Cut(_) => {}
        }
    }

    async fn append(&mut self, log: &Log<Simulated>, txs: Vec<Transaction>, each: bool) {
        self.model.hoped.extend(txs.iter().cloned());
        self.mark();
        let batches: Vec<LogBatch> = txs.into_iter().flat_map(|tx| tx.frames).collect();
        let answers = if each {
            let mut all = Vec::new();
            for batch in batches {
                match wait(log, vec![batch]).await {
                    Ok(answers) => all.extend(answers),
                    Err(error) => return self.failure = Some(error),
                }
            }
            Ok(all)
        } else {
            wait(log, batches).await
        };
        match answers {
            Ok(answers) => {
                let mut answers = answers.into_iter();
                for mut tx in self.model.hoped.drain(..) {
                    let ranges: Vec<_> = tx.frames.iter().filter_map(|_| answers.next()).collect();
                    tx.offsets = Some((ranges[0].start.0, ranges[ranges.len() - 1].end.0));
                    self.model.known.push(tx);
                }
                self.mark();
            }
            Err(error) => self.failure = Some(error),
        }
    }

    fn release(&mut self) -> LogBatch {
        self.number += 1;
        let mut batch = batch(Kind::Control, Bytes::new(), 0, self.number);
        batch.state.push(StateChange { key: PENDING_KEY.into(), value: None });
        batch
    }

    fn transaction(&mut self, frames: usize, size: usize, kind: Kind) -> Transaction {
        let frames: Vec<LogBatch> = (0..frames)
            .map(|i| {
                self.number += 1;
                let mut payload = self.number.to_le_bytes().to_vec();
                let mut chance = Chance(self.number);
                payload.extend(std::iter::repeat_with(|| chance.next() as u8).take(size));
                let records = if kind == Kind::Control { 0 } else { 1 + (self.number % 3) as u32 };
                let last = i + 1 == frames;
                let mut batch = batch(kind, payload.into(), records, self.number);
                batch.ends_transaction = last;
                batch.position = batch.position.filter(|_| last);
                batch
            })
            .collect();
        Transaction { frames, offsets: None }
    }
}

fn batch(kind: Kind, payload: Bytes, records: u32, number: u64) -> LogBatch {
    LogBatch {
        kind,
        position: Some(Position::new(number.to_be_bytes().to_vec()).unwrap()),
        records,
        event_time: Micros(number as i64),
        payload,
        state: Vec::new(),
        ends_transaction: true,
    }
}

fn change(key: u8, number: u64) -> StateChange {
    let value = (key % 4 != 3).then(|| number.to_string().into());
    StateChange { key: vec![b'k', key].into(), value }
}

/// Appends all in one go, and waits for all.
async fn wait(log: &Log<Simulated>, batches: Vec<LogBatch>) -> crate::Result<Vec<crate::OffsetRange>> {
    let disk = &log.shared().files;
    disk.hold();
    let mut commits = Vec::new();
    for batch in batches {
        match log.append(batch).await {
            Ok(commit) => commits.push(commit),
            Err(error) => {
                disk.release();
                return Err(error);
            }
        }
    }
    disk.release();
    let mut answers = Vec::new();
    for commit in commits {
        answers.push(commit.await?.offsets);
    }
    Ok(answers)
}

/// A life in which everything happens once that a log does.
pub(super) fn eventful() -> Vec<Step> {
    let append = |frames, size, each, kind, state| Step::Append { frames, size, each, kind, state };
    vec![
        append(1, 100, false, Kind::Data, Some(1)),
        Step::Group(3),
        append(3, 600, true, Kind::Data, Some(2)),
        Step::State(1),
        Step::Begin(2, 300),
        Step::Abort,
        append(1, 900, false, Kind::Data, None),
        append(2, 200, false, Kind::Data, Some(4)),
        append(1, 1000, false, Kind::Data, None),
        append(1, 0, false, Kind::Control, Some(5)),
        Step::Group(4),
        append(1, 1500, false, Kind::Data, None),
        Step::Close,
        Step::Group(4),
        append(2, 700, true, Kind::Data, Some(2)),
        append(1, 1500, false, Kind::Data, None),
        Step::Trim,
        append(1, 100, false, Kind::Data, Some(7)),
        append(2, 60, true, Kind::Pending, None),
        append(1, 60, false, Kind::Pending, None),
        append(2, 1400, false, Kind::Data, None),
        append(1, 100, false, Kind::Data, None),
        Step::Begin(3, 600),
    ]
}

/// What a second process does: it goes on far enough to begin another segment.
pub(super) fn going_on() -> Vec<Step> {
    let append = |size| Step::Append { frames: 1, size, each: false, kind: Kind::Data, state: None };
    vec![append(50), append(2900), append(50)]
}
