//! The suite that every log must pass, whatever it is made of.
//!
//! A property is checked in a place of its own, so that it fails by itself. The
//! suite is proved in turn by logs that break one property each.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};

use crate::{
    Appended, Epoch, EventLog, Frame, Kind, LogBatch, LogId, Micros, Offset, PENDING_KEY, Position, Result, StateChange,
};

/// Where a log is kept and opened again and again. Segments must end within
/// some KiB, for there is nothing to trim else.
pub trait Place {
    /// The log.
    type Log: EventLog;
    /// Opens what is there; the one opened before was closed and dropped.
    fn open(&mut self) -> impl Future<Output = Result<Opened<Self::Log>>>;
}

/// A log, and what it says of itself.
#[derive(Debug)]
pub struct Opened<L> {
    /// The log.
    pub log: L,
    /// Which it is.
    pub id: LogId,
    /// Of this opening.
    pub epoch: Epoch,
    /// The first offset held.
    pub start: Offset,
}

/// What a log promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Property {
    /// What was acknowledged is shown, in the order of appending, each once.
    Order,
    /// The high-water mark never falls, and no reader passes it.
    HighWater,
    /// A transaction is shown whole, its position on every frame.
    Whole,
    /// What was aborted is never shown, and its state never applied.
    Abort,
    /// The position is that of the last whole transaction that had one.
    Position,
    /// State changes are there with their transaction or not at all.
    State,
    /// Trimming removes what lies below, nothing else, and nothing held back.
    Trim,
    /// After closing, all is there: content, position, state, id; and no offset comes twice.
    Reopen,
    /// The epoch grows with each opening.
    Epoch,
    /// A transaction that was not ended before the end is gone.
    Unfinished,
    /// Closing writes what was appended, and nothing is taken after.
    Close,
}

impl Property {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Order,
        Self::HighWater,
        Self::Whole,
        Self::Abort,
        Self::Position,
        Self::State,
        Self::Trim,
        Self::Reopen,
        Self::Epoch,
        Self::Unfinished,
        Self::Close,
    ];
}

/// A promise that was not kept.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Which.
    pub property: Property,
    /// What happened instead.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.property, self.what)
    }
}

impl std::error::Error for Violation {}

/// Checks all properties, each in a new place.
pub async fn suite<P: Place>(mut place: impl FnMut() -> P) -> Result<(), Violation> {
    for property in Property::ALL {
        check(property, &mut place()).await?;
    }
    Ok(())
}

/// Checks one.
pub async fn check<P: Place>(property: Property, place: &mut P) -> Result<(), Violation> {
    let checked = match property {
        Property::Order => order(place).await,
        Property::HighWater => high_water(place).await,
        Property::Whole => whole(place).await,
        Property::Abort => abort(place).await,
        Property::Position => position(place).await,
        Property::State => state(place).await,
        Property::Trim => trim(place).await,
        Property::Reopen => reopen(place).await,
        Property::Epoch => epoch(place).await,
        Property::Unfinished => unfinished(place).await,
        Property::Close => close(place).await,
    };
    checked.map_err(|what| Violation { property, what })
}

type Checked<T = ()> = std::result::Result<T, String>;

fn say(error: impl fmt::Debug) -> String {
    format!("{error:?}")
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(what()) }
}

fn same<T: PartialEq + fmt::Debug>(what: &str, found: T, expected: T) -> Checked {
    ensure(found == expected, || format!("{what} is {found:?} instead of {expected:?}"))
}

fn event(n: u64) -> LogBatch {
    LogBatch {
        kind: Kind::Data,
        position: Position::new(n.to_be_bytes().to_vec()).ok(),
        records: 1 + (n % 3) as u32,
        event_time: Micros(n as i64),
        payload: Bytes::from(format!("event {n} ").repeat(20)),
        state: Vec::new(),
        ends_transaction: true,
    }
}

fn part(n: u64) -> LogBatch {
    LogBatch { position: None, ends_transaction: false, ..event(n) }
}

fn set(key: &str, value: &str) -> StateChange {
    StateChange { key: key.to_owned().into(), value: Some(value.to_owned().into()) }
}

fn unset(key: &str) -> StateChange {
    StateChange { key: key.to_owned().into(), value: None }
}

async fn open<P: Place>(place: &mut P) -> Checked<Opened<P::Log>> {
    place.open().await.map_err(say)
}

/// Appends, and waits until it is durable.
async fn append(log: &impl EventLog, batch: LogBatch) -> Checked<Appended> {
    log.append(batch).await.map_err(say)?.await.map_err(say)
}

async fn many(log: &impl EventLog, numbers: std::ops::Range<u64>) -> Checked<Vec<Appended>> {
    let mut commits = Vec::new();
    for n in numbers {
        commits.push(log.append(event(n)).await.map_err(say)?);
    }
    let mut all = Vec::new();
    for commit in commits {
        all.push(commit.await.map_err(say)?);
    }
    Ok(all)
}

/// How long what must come is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

async fn next(frames: &mut (impl Stream<Item = Result<Frame>> + Unpin)) -> Checked<Frame> {
    match tokio::time::timeout(PATIENCE, frames.next()).await {
        Ok(Some(frame)) => frame.map_err(say),
        Ok(None) => Err("the reader ended".into()),
        Err(_) => Err("what was acknowledged is not shown".into()),
    }
}

/// Everything from an offset up to the high-water mark.
async fn read(log: &impl EventLog, from: Offset) -> Checked<Vec<Frame>> {
    let end = log.high_water();
    let mut frames = Box::pin(log.read(from));
    let mut read: Vec<Frame> = Vec::new();
    while read.last().map_or(from, |frame| frame.offsets.end) < end {
        read.push(next(&mut frames).await?);
    }
    Ok(read)
}

fn payloads(frames: &[Frame]) -> Vec<&Bytes> {
    frames.iter().map(|frame| &frame.payload).collect()
}

fn is_event(frame: &Frame, n: u64) -> Checked {
    let expected = event(n);
    same("the payload", &frame.payload, &expected.payload)?;
    same("the position", &frame.position, &expected.position)?;
    same("the kind", frame.kind, expected.kind)?;
    same("the number of records", frame.offsets.end.0 - frame.offsets.start.0, expected.records.into())?;
    ensure(frame.event_time >= expected.event_time, || format!("the time is {:?}", frame.event_time))
}

async fn order<P: Place>(place: &mut P) -> Checked {
    let Opened { log, start, .. } = open(place).await?;
    let appended = many(&log, 0..60).await?;
    let mut end = start;
    for (n, appended) in (0..).zip(&appended) {
        ensure(appended.offsets.start >= end, || format!("{:?} after {end}", appended.offsets))?;
        same("the acknowledged position", appended.position.get(), &event(n).position)?;
        end = appended.offsets.end;
    }
    ensure(log.high_water() >= end, || format!("acknowledged to {end}, shown to {}", log.high_water()))?;
    let frames = read(&log, start).await?;
    same("the number of frames", frames.len(), 60)?;
    for (n, (frame, appended)) in (0..).zip(frames.iter().zip(&appended)) {
        is_event(frame, n)?;
        same("the offsets", frame.offsets, appended.offsets)?;
    }
    // From the middle, and from a place within a frame.
    for (n, frame) in (0..).zip(&frames) {
        for offset in frame.offsets.start.0..frame.offsets.end.0 {
            let mut from = Box::pin(log.read(Offset(offset)));
            is_event(&next(&mut from).await?, n)?;
        }
    }
    // A reader that is at the end is told of what comes.
    let mut waiting = Box::pin(log.read(log.high_water()));
    let (first, _) = tokio::join!(next(&mut waiting), append(&log, event(60)));
    is_event(&first?, 60)
}

async fn high_water<P: Place>(place: &mut P) -> Checked {
    let Opened { log, start, .. } = open(place).await?;
    let mut told = log.subscribe();
    let mut frames = Box::pin(log.read(start));
    let mut mark = log.high_water();
    for n in 0..30 {
        let appended = many(&log, n * 3..n * 3 + 3).await?;
        for _ in &appended {
            let frame = next(&mut frames).await?;
            let now = log.high_water();
            ensure(frame.offsets.end <= now, || format!("{:?} is shown above {now}", frame.offsets))?;
            ensure(now >= mark, || format!("it fell from {mark} to {now}"))?;
            mark = now;
        }
        let end = appended.last().map_or(start, |appended| appended.offsets.end);
        same("the high-water mark that was told", *told.borrow_and_update(), end)?;
        // What is durable and not whole moves nothing.
        append(&log, part(1000)).await?;
        same("the high-water mark inside a transaction", log.high_water(), end)?;
        log.abort().await.map_err(say)?;
        mark = log.high_water();
    }
    Ok(())
}

async fn whole<P: Place>(place: &mut P) -> Checked {
    let Opened { log, start, .. } = open(place).await?;
    let mut frames = Box::pin(log.read(start));
    for n in 0..10 {
        let before = log.high_water();
        for i in 0..3 {
            append(&log, part(n * 10 + i)).await?;
            same("the high-water mark inside a transaction", log.high_water(), before)?;
        }
        append(&log, event(n * 10 + 3)).await?;
        for i in 0..4 {
            let frame = next(&mut frames).await?;
            same("the payload", &frame.payload, &event(n * 10 + i).payload)?;
            same("the position", &frame.position, &event(n * 10 + 3).position)?;
            same("whether it ends the transaction", frame.ends_transaction, i == 3)?;
        }
    }
    Ok(())
}

async fn abort<P: Place>(place: &mut P) -> Checked {
    let Opened { log, start, .. } = open(place).await?;
    let mut frames = Box::pin(log.read(start));
    append(&log, event(0)).await?;
    log.abort().await.map_err(say)?;
    for n in 1..10 {
        append(&log, LogBatch { state: vec![set("aborted", "yes")], ..part(1000) }).await?;
        append(&log, part(1001)).await?;
        log.abort().await.map_err(say)?;
        same("the position", log.position().await.map_err(say)?, event(n - 1).position)?;
        append(&log, event(n)).await?;
    }
    let mut end = start;
    for n in 0..10 {
        let frame = next(&mut frames).await?;
        is_event(&frame, n)?;
        ensure(frame.offsets.start >= end, || format!("{:?} after {end}", frame.offsets))?;
        end = frame.offsets.end;
    }
    same("the state", log.state().get(b"aborted"), None)?;
    drop(frames);
    log.close().await;
    drop(log);
    let log = open(place).await?.log;
    same("the state after reopening", log.state().get(b"aborted"), None)?;
    same("the number of frames after reopening", read(&log, start).await?.len(), 10)
}

async fn position<P: Place>(place: &mut P) -> Checked {
    let Opened { log, .. } = open(place).await?;
    same("the first position", log.position().await.map_err(say)?, None)?;
    append(&log, event(1)).await?;
    same("the position", log.position().await.map_err(say)?, event(1).position)?;
    append(&log, LogBatch { position: None, ..event(2) }).await?;
    same("the position after one without", log.position().await.map_err(say)?, event(1).position)?;
    // An idle source's position moves without a record.
    append(&log, LogBatch { records: 0, payload: Bytes::new(), ..event(3) }).await?;
    same("the position of an empty batch", log.position().await.map_err(say)?, event(3).position)?;
    append(&log, LogBatch { ends_transaction: false, ..event(4) }).await?;
    same("the position inside a transaction", log.position().await.map_err(say)?, event(3).position)?;
    append(&log, event(5)).await?;
    same("the position", log.position().await.map_err(say)?, event(5).position)?;
    append(&log, LogBatch { ends_transaction: false, ..event(6) }).await?;
    log.abort().await.map_err(say)?;
    same("the position after an abort", log.position().await.map_err(say)?, event(5).position)?;
    log.close().await;
    drop(log);
    let log = open(place).await?.log;
    same("the position after reopening", log.position().await.map_err(say)?, event(5).position)
}

async fn state<P: Place>(place: &mut P) -> Checked {
    let Opened { log, .. } = open(place).await?;
    append(&log, LogBatch { state: vec![set("a", "1"), set("b", "1")], ..event(0) }).await?;
    same("a", log.state().get(b"a"), Some(&b"1"[..]))?;
    // State alone takes no offset.
    let before = log.high_water();
    let alone = LogBatch { records: 0, payload: Bytes::new(), state: vec![unset("b"), set("c", "1")], ..event(1) };
    append(&log, alone).await?;
    same("the high-water mark", log.high_water(), before)?;
    same("b", log.state().get(b"b"), None)?;
    append(&log, LogBatch { state: vec![set("a", "2")], ..part(2) }).await?;
    same("a inside a transaction", log.state().get(b"a"), Some(&b"1"[..]))?;
    append(&log, LogBatch { state: vec![set("a", "3"), unset("c")], ..event(3) }).await?;
    same("a", log.state().get(b"a"), Some(&b"3"[..]))?;
    append(&log, LogBatch { state: vec![set("a", "4")], ..part(4) }).await?;
    log.close().await;
    drop(log);
    let log = open(place).await?.log;
    same("a after reopening", log.state().get(b"a"), Some(&b"3"[..]))?;
    same("the number of entries", log.state().len(), 1)
}

async fn trim<P: Place>(place: &mut P) -> Checked {
    let Opened { log, start, .. } = open(place).await?;
    append(&log, LogBatch { state: vec![set("old", "1")], ..event(0) }).await?;
    let appended = many(&log, 1..301).await?;
    log.trim(start).await.map_err(say)?;
    same("the frames after trimming nothing", read(&log, start).await?.len(), 301)?;
    let upto = appended[149].offsets.start;
    log.trim(upto).await.map_err(say)?;
    let kept = read(&log, upto).await?;
    same("the first frame kept", kept.first().map(|frame| frame.offsets.start), Some(upto))?;
    same("the frames kept", kept.len(), 151)?;
    let mut gone = Box::pin(log.read(start));
    let gone = next(&mut gone).await;
    ensure(gone.is_err(), || format!("nothing was removed: {gone:?}"))?;
    same("the state", log.state().get(b"old"), Some(&b"1"[..]))?;
    // Nothing held back goes.
    let held = append(&log, LogBatch { kind: Kind::Pending, ..event(400) }).await?.offsets.start;
    append(&log, LogBatch { kind: Kind::Pending, ..event(401) }).await?;
    let end = many(&log, 402..502).await?.last().map_or(held, |appended| appended.offsets.end);
    log.trim(end).await.map_err(say)?;
    same("the first frame held back", read(&log, held).await?[0].offsets.start, held)?;
    let key = String::from_utf8_lossy(PENDING_KEY);
    append(&log, LogBatch { state: vec![unset(&key)], ..event(502) }).await?;
    log.trim(end).await.map_err(say)?;
    let mut gone = Box::pin(log.read(held));
    let gone = next(&mut gone).await;
    ensure(gone.is_err(), || format!("what was released was not removed: {gone:?}"))?;
    log.close().await;
    drop(log);
    let Opened { log, start, .. } = open(place).await?;
    ensure(start > held && start <= end, || format!("it begins at {start} after reopening"))?;
    same("the last frame", read(&log, start).await?.last().map(|frame| frame.payload.clone()), Some(event(502).payload))
}

async fn reopen<P: Place>(place: &mut P) -> Checked {
    let Opened { mut log, id, start, .. } = open(place).await?;
    let mut end = start;
    for n in 0..5 {
        for appended in many(&log, n * 30..n * 30 + 30).await? {
            ensure(appended.offsets.start >= end, || format!("{:?} after {end}", appended.offsets))?;
            end = appended.offsets.end;
        }
        let before = read(&log, start).await?;
        log.close().await;
        drop(log);
        let opened = open(place).await?;
        log = opened.log;
        same("the id", opened.id, id)?;
        same("the start", opened.start, start)?;
        same("the high-water mark", log.high_water(), end)?;
        same("the content", payloads(&read(&log, start).await?), payloads(&before))?;
        same("the position", log.position().await.map_err(say)?, event(n * 30 + 29).position)?;
    }
    Ok(())
}

async fn epoch<P: Place>(place: &mut P) -> Checked {
    let mut greatest = Epoch(0);
    for n in 0..5 {
        let Opened { log, epoch, .. } = open(place).await?;
        ensure(epoch > greatest, || format!("{epoch:?} after {greatest:?}"))?;
        greatest = epoch;
        if n % 2 == 0 {
            append(&log, event(n)).await?;
        }
        log.close().await;
    }
    Ok(())
}

async fn unfinished<P: Place>(place: &mut P) -> Checked {
    let Opened { log, start, .. } = open(place).await?;
    append(&log, event(0)).await?;
    let end = log.high_water();
    append(&log, part(1)).await?;
    append(&log, part(2)).await?;
    log.close().await;
    drop(log);
    let log = open(place).await?.log;
    ensure(log.high_water() >= end, || format!("it fell from {end} to {}", log.high_water()))?;
    append(&log, event(3)).await?;
    let frames = read(&log, start).await?;
    same("the number of frames", frames.len(), 2)?;
    is_event(&frames[0], 0)?;
    is_event(&frames[1], 3)
}

async fn close<P: Place>(place: &mut P) -> Checked {
    let Opened { log, start, .. } = open(place).await?;
    let mut commits = Vec::new();
    for n in 0..20 {
        commits.push(log.append(event(n)).await.map_err(say)?);
    }
    log.close().await;
    for commit in commits {
        commit.await.map_err(say)?;
    }
    let taken = match log.append(event(20)).await {
        Ok(commit) => commit.await.is_ok(),
        Err(_) => false,
    };
    ensure(!taken, || "an append was taken after closing".into())?;
    ensure(log.abort().await.is_err(), || "an abort was taken after closing".into())?;
    log.close().await;
    same("what can still be read", read(&log, start).await?.len(), 20)
}
