//! What the suite drives a sink by, as the runtime would: steps, promised ones
//! first, and tables that wait apart and catch up.

use std::collections::BTreeMap;

use storage::{Epoch, Offset, OffsetRange};

use super::log::{Item, STREAMS, TestLog};
use super::{Checked, Destination, LOG, check};
use crate::batch::Batch;
use crate::error::{Action, Result};
use crate::sink::{Checkpoint, Parked, Sink, Step};

/// One daemon's work: what it delivers, in steps of how many transactions.
pub(super) struct Daemon<'a> {
    pub(super) log: &'a TestLog,
    pub(super) epoch: u64,
    pub(super) cut: usize,
    pub(super) streams: &'a [&'a str],
    /// It finds that the first stream cannot be delivered, has it wait apart
    /// until the others are half through the log, and then catch up.
    pub(super) apart: bool,
}

/// What was told and seen in the course of a test; both only ever grow.
#[derive(Default)]
pub(super) struct Course {
    pub(super) checkpoint: Option<Offset>,
    pub(super) held: BTreeMap<String, Vec<u64>>,
    /// Stretches promised, with their streams.
    pub(super) promised: Vec<(OffsetRange, Vec<String>)>,
    pub(super) wrong: Option<String>,
}

impl Course {
    pub(super) fn told(&mut self, checkpoint: Option<Checkpoint>) {
        let told = checkpoint.map(|checkpoint| checkpoint.next);
        if told < self.checkpoint {
            self.wrong = Some(format!("the checkpoint went back from {:?} to {told:?}", self.checkpoint));
        }
        self.checkpoint = told;
    }

    /// What is there is the beginning of what must be, and nothing that was there has gone.
    pub(super) async fn look(&mut self, destination: &impl Destination, whole: &BTreeMap<String, Vec<u64>>) -> Checked {
        let held = destination.held().await;
        for (stream, offsets) in &held {
            let must = whole.get(stream).map(Vec::as_slice).unwrap_or_default();
            check!(must.starts_with(offsets), "{stream} holds {offsets:?}, which do not begin {must:?}");
        }
        for (stream, before) in &self.held {
            let now = held.get(stream).map(Vec::as_slice).unwrap_or_default();
            check!(now.starts_with(before), "{stream} held {before:?}, now {now:?}");
        }
        self.held = held;
        self.wrong.take().map_or(Ok(()), Err)
    }

    pub(super) async fn is_whole(
        &mut self,
        destination: &impl Destination,
        whole: &BTreeMap<String, Vec<u64>>,
    ) -> Checked {
        self.look(destination, whole).await?;
        check!(self.held == *whole, "it holds {:?}, not {whole:?}", self.held);
        Ok(())
    }
}

impl Daemon<'_> {
    /// As the runtime does: open, the promised step, then step after step to the
    /// log's end; tables that wait apart catch up on the way.
    pub(super) async fn deliver(&self, sink: &mut impl Sink, course: &mut Course) -> Result<()> {
        let mut opened = sink.open(LOG, Epoch(self.epoch)).await?;
        if self.apart && opened.parked.is_empty() {
            let promised = opened.promised.as_ref().map_or(self.log.start(), |promise| promise.range.start);
            sink.park(STREAMS[0], opened.checkpoint.map_or(promised, |checkpoint| checkpoint.next), "refused").await?;
            opened = sink.open(LOG, Epoch(self.epoch)).await?;
        }
        course.told(opened.checkpoint);
        let mut at = opened.checkpoint.map_or(self.log.start(), |checkpoint| checkpoint.next);
        if let Some(promise) = opened.promised {
            course.promised.push((promise.range, promise.streams.clone()));
            let streams: Vec<&str> = promise.streams.iter().map(String::as_str).collect();
            let begin = opened.checkpoint.map_or(promise.range.start, |checkpoint| checkpoint.next);
            if promise.range.start != begin {
                course.wrong = Some(format!("a promise of {:?} at checkpoint {at}", promise.range));
            }
            at = self.step(sink, promise.range, &streams, course).await?;
        }
        if !opened.parked.is_empty() {
            let waits = |stream: &str| opened.parked.iter().any(|table| table.stream == stream);
            let others: Vec<&str> = self.streams.iter().copied().filter(|stream| !waits(stream)).collect();
            at = self.steps(sink, at, self.log.middle(), &others, course).await?;
            for table in &opened.parked {
                self.catch_up(sink, table, at).await?;
            }
        }
        self.steps(sink, at, self.log.end(), self.streams, course).await.map(drop)
    }

    async fn steps(
        &self,
        sink: &mut impl Sink,
        mut at: Offset,
        upto: Offset,
        streams: &[&str],
        course: &mut Course,
    ) -> Result<Offset> {
        while at < upto {
            at = self.step(sink, OffsetRange { start: at, end: self.cut_at(at) }, streams, course).await?;
        }
        Ok(at)
    }

    fn cut_at(&self, start: Offset) -> Offset {
        let rest = self.log.items.iter().map(Item::range).filter(|range| range.start >= start);
        rest.take(self.cut).last().map_or(self.log.end(), |range| range.end)
    }

    /// Steps of one table alone, the promised one first, to where the others are.
    async fn catch_up(&self, sink: &mut impl Sink, table: &Parked, others: Offset) -> Result<()> {
        let (mut next, mut promised) = (table.next, table.promised);
        loop {
            let end = self.cut_at(next).min(others);
            let range = promised.take().unwrap_or(OffsetRange { start: next, end });
            self.stage(sink, range, &[&table.stream]).await?;
            let staged = sink.staged().await?;
            next = sink.commit(staged, step(range).of_lane(&table.stream)).await?.next;
            if next >= others {
                return Ok(());
            }
        }
    }

    pub(super) async fn stage(&self, sink: &mut impl Sink, range: OffsetRange, streams: &[&str]) -> Result<()> {
        let inside = |item: &&Item| item.range().start >= range.start && item.range().end <= range.end;
        for item in self.log.items.iter().filter(inside) {
            match item {
                Item::Rows(frame) => {
                    let batch = Batch::new(frame.clone());
                    for run in batch.runs().map(|run| run.expect("the suite wrote it")) {
                        let shape = &self.log.shapes[&run.schema];
                        if streams.contains(&shape.table.stream().as_str()) {
                            sink.stage(shape, run).await?;
                        }
                    }
                }
                Item::Mark(mark, range) if streams.contains(&mark.stream.as_str()) => {
                    sink.stage_mark(&self.log.shapes[&mark.shape], mark, range.start).await?;
                }
                Item::Mark(..) | Item::Nothing(_) => {}
            }
        }
        Ok(())
    }

    pub(super) async fn step(
        &self,
        sink: &mut impl Sink,
        range: OffsetRange,
        streams: &[&str],
        course: &mut Course,
    ) -> Result<Offset> {
        self.stage(sink, range, streams).await?;
        let staged = sink.staged().await?;
        let step = step(range);
        let checkpoint = sink.commit(staged, step).await?;
        course.told(Some(checkpoint));
        Ok(checkpoint.next)
    }

    /// With errors that may pass, as often as the runtime would.
    pub(super) async fn persist(&self, sink: &mut impl Sink, course: &mut Course) -> Checked {
        let mut last = None;
        for _ in 0..4 {
            match self.deliver(sink, course).await {
                Ok(()) => return Ok(()),
                Err(error) if error.action() == Action::Retry => last = Some(error),
                Err(error) => return Err(format!("it has stopped: {}", error.chain())),
            }
        }
        Err(format!("it goes on failing: {}", last.map(|error| error.chain()).unwrap_or_default()))
    }

    pub(super) fn whole(&self) -> BTreeMap<String, Vec<u64>> {
        self.log.offsets(OffsetRange { start: self.log.start(), end: self.log.end() }, self.streams)
    }
}

pub(super) fn step(range: OffsetRange) -> Step {
    Step::new(Checkpoint { next: range.start }, range, None, storage::Micros(1)).expect("it begins there")
}
