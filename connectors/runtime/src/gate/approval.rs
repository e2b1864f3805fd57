//! What a person decides over a held stream.

use std::sync::Arc;

use connector::{Error, Result, Shape};
use storage::{EventLog, Kind, Log, Micros, Offset, StateChange};

use super::{Gate, Hold, OfStream};
use crate::hold::{Amount, batch, floor_without, put, release, remove};
use crate::ingest::log_failed;
use crate::quarantine::{Quarantine, Rules};
use crate::schemas::{Parked, SchemaBook, Settled};

/// How a held table is to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Approval {
    /// If the subject's level, as it is now, allows it.
    AtLevel,
    /// As a new version, whatever the level says.
    AsNewVersion,
    /// As a new version, whatever the level says; what waits is given up, and
    /// the table read anew.
    ResetTable,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Approved {
    /// Rows and marks that were let go, or given up.
    pub events: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Shapes that were registered.
    pub shapes: u64,
}

/// What the gate answers to shapes that were registered.
pub(crate) enum Let {
    /// It was done.
    Go(Approved),
    /// Rows have come under another shape meanwhile.
    Wait(Hold),
    /// Not before rules of the registry are mended.
    Rules(String),
    /// There is no such hold.
    NotHeld,
}

impl Hold {
    /// What to do where rules of the registry cannot be followed.
    pub const MEND: &'static str = "mend the property: register the subject's last schema again with `metadata` that is \
         right (POST /subjects/SUBJECT/versions), or delete the version that has it wrong (DELETE \
         /subjects/SUBJECT/versions/N); the table goes on by itself then";
}

impl Gate {
    /// Of a stream.
    pub(crate) fn hold(&self, stream: &str) -> Option<&Hold> {
        self.holds.get(stream)
    }

    /// Lets a stream go on, if all that it needs is among `shapes`. Everything
    /// that was appended must be durable, and no transaction be under way.
    /// After an error, or when dropped, `Log::abort` makes void what was done.
    pub(crate) async fn let_go(
        &mut self,
        log: &Log,
        stream: &str,
        shapes: &[Shape],
        quarantine: &mut Quarantine,
    ) -> Result<Let> {
        let Some(hold) = self.holds.get(stream) else { return Ok(Let::NotHeld) };
        if let Some(why) = &hold.rules {
            return Ok(Let::Rules(why.clone()));
        }
        if self.lacks(hold, shapes, false) {
            return Ok(Let::Wait(hold.clone()));
        }
        let key = hold.key();
        let mut state = registered(shapes);
        state.extend(self.book.registered().unwritten(&log.state()));
        state.push(remove(key.clone()));
        state.push(floor_without(&log.state(), &[key.as_bytes()]));
        let mut pick = OfStream { stream: stream.into(), book: self.book.clone(), seen: Vec::new() };
        let amount = match hold.from {
            Some(from) => release(log, Offset(from), &mut pick, state, |batch| quarantine.sift(batch, 1)).await?,
            None => {
                append(log, state).await?;
                Amount::default()
            }
        };
        self.holds.remove(stream);
        quarantine.stands_at(log.high_water());
        self.settled(log, shapes);
        Ok(Let::Go(Approved { events: amount.events, bytes: amount.bytes, shapes: shapes.len() as u64 }))
    }

    /// Gives up what waits of a stream as soon as it is read anew, which
    /// `again`, the source's own state, brings about once the source is opened
    /// again. The rest as for `let_go`.
    pub(crate) async fn reset(
        &mut self,
        log: &Log,
        stream: &str,
        shapes: &[Shape],
        again: Vec<StateChange>,
    ) -> Result<Let> {
        let Some(hold) = self.holds.get(stream) else { return Ok(Let::NotHeld) };
        if let Some(why) = &hold.rules {
            return Ok(Let::Rules(why.clone()));
        }
        if self.lacks(hold, shapes, true) {
            return Ok(Let::Wait(hold.clone()));
        }
        let approved = Approved { events: hold.events, bytes: hold.bytes, shapes: shapes.len() as u64 };
        let mut hold = hold.clone();
        hold.reset = true;
        let mut state = registered(shapes);
        // Nothing waits that could be held on to until its generation begins.
        hold.from.get_or_insert(log.high_water().0);
        hold.counted = log.high_water().0;
        state.extend(self.book.registered().unwritten(&log.state()));
        state.push(put(hold.key(), &hold));
        state.extend(again);
        append(log, state).await?;
        self.holds.insert(stream.into(), hold);
        self.settled(log, shapes);
        Ok(Let::Go(approved))
    }

    /// Takes over what the registry says of shapes that have waited for it;
    /// their stream goes on if nothing else is in its way. As for `let_go`.
    pub(crate) async fn settle(&mut self, log: &Log, settled: &Settled, quarantine: &mut Quarantine) -> Result<()> {
        let Settled { stream, approved, parked } = settled;
        let goes = |hold: &Hold| parked.is_empty() && self.goes(hold, approved);
        if self.holds.get(stream).is_some_and(goes) {
            if let Let::Go(Approved { events, .. }) = self.let_go(log, stream, approved, quarantine).await? {
                tracing::info!(stream, events, "the registry has answered: it goes on");
            }
            return Ok(());
        }
        let mut state = registered(approved);
        state.extend(self.book.registered().unwritten(&log.state()));
        state.extend(parked.iter().map(|parked| put(Parked::state_key(parked.shape.number), parked)));
        append(log, state).await?;
        for parked in parked {
            tracing::error!(
                stream,
                level = parked.level,
                violations = parked.violations.join("; "),
                "the registry has answered: its new shape is incompatible, and it stays held back"
            );
        }
        self.book.forbidden(parked);
        self.settled(log, approved);
        Ok(())
    }

    /// Holds no longer for their rules what has mended ones, and lets it go if
    /// nothing else is in its way. As for `let_go`.
    pub(crate) async fn mended(&mut self, log: &Log, quarantine: &mut Quarantine) -> Result<()> {
        let wrong = self.book.registered().wrong();
        let is_mended = |hold: &&Hold| hold.rules.is_some() && wrong.iter().all(|wrong| wrong.stream != hold.stream);
        let mended: Vec<String> = self.holds.values().filter(is_mended).map(|hold| hold.stream.clone()).collect();
        for stream in mended {
            let Some(hold) = self.holds.get_mut(&stream) else { continue };
            hold.rules = None;
            let hold = hold.clone();
            if !self.goes(&hold, &[]) {
                append(log, vec![put(hold.key(), &hold)]).await?;
                self.settled(log, &[]);
            } else if let Let::Go(Approved { events, .. }) = self.let_go(log, &stream, &[], quarantine).await? {
                tracing::info!(stream, events, "its rules in the registry can be followed: it goes on");
            }
        }
        Ok(())
    }

    /// Whether nothing is in the way of what is held.
    fn goes(&self, hold: &Hold, shapes: &[Shape]) -> bool {
        hold.rules.is_none() && !hold.reset && !self.lacks(hold, shapes, false)
    }

    fn lacks(&self, hold: &Hold, shapes: &[Shape], only_last: bool) -> bool {
        let needs = hold.needs(&self.book, only_last);
        needs.iter().any(|number| !shapes.iter().any(|shape| shape.number == *number))
    }

    fn settled(&mut self, log: &Log, shapes: &[Shape]) {
        self.book.approved(shapes);
        self.numbers.clear();
        self.next = log.high_water().0;
        self.parked = !self.holds.is_empty() || log.state().prefix(Parked::STATE_PREFIX.as_bytes()).next().is_some();
        self.news = true;
    }
}

/// An approval under way: shapes are registered apart from the log, and by
/// then rows may have come under another one.
pub(crate) struct Attempt<'a> {
    book: &'a SchemaBook,
    stream: &'a str,
    how: Approval,
    hold: Hold,
    left: usize,
}

impl<'a> Attempt<'a> {
    pub(crate) fn new(book: &'a SchemaBook, stream: &'a str, how: Approval, hold: Option<Hold>) -> Result<Self> {
        const TRIES: usize = 5;
        let hold = hold.ok_or_else(|| not_held(stream))?;
        Ok(Self { book, stream, how, hold, left: TRIES })
    }

    /// Registers what the hold needs: what to bring to the gate.
    pub(crate) async fn shapes(&mut self) -> Result<Vec<Shape>> {
        if self.left == 0 {
            let what = format!("the shape of {} changes faster than it can be approved", self.stream);
            return Err(Error::halt(what).hint("try again"));
        }
        self.left -= 1;
        let needs = self.hold.needs(self.book, self.how == Approval::ResetTable);
        self.book.approve(&needs, self.how != Approval::AtLevel).await
    }

    /// None: once more.
    pub(crate) fn answered(&mut self, answer: Let) -> Result<Option<Approved>> {
        match answer {
            Let::Go(approved) => return Ok(Some(approved)),
            Let::Wait(now) => self.hold = now,
            Let::Rules(why) => {
                return Err(Error::halt(format!(
                    "{} has rules in the registry that cannot be followed: {why}",
                    self.stream
                ))
                .hint(Hold::MEND));
            }
            Let::NotHeld => return Err(not_held(self.stream)),
        }
        Ok(None)
    }
}

/// Lets a stream of a stopped daemon go on: whoever calls has opened its log.
/// `again` as for `Desk::approve`.
pub async fn approve_stopped(
    log: &Log,
    book: Arc<SchemaBook>,
    stream: &str,
    how: Approval,
    rules: Rules,
    again: impl Fn() -> Vec<StateChange>,
) -> Result<Approved> {
    log.abort().await.map_err(log_failed)?;
    let mut gate = Gate::open(book.clone(), log).await?;
    let mut quarantine = Quarantine::open(log.clone(), rules).await?;
    let mut attempt = Attempt::new(&book, stream, how, gate.hold(stream).cloned())?;
    loop {
        let shapes = attempt.shapes().await?;
        gate.heed();
        let answer = match how {
            Approval::ResetTable => gate.reset(log, stream, &shapes, again()).await?,
            _ => gate.let_go(log, stream, &shapes, &mut quarantine).await?,
        };
        if let Some(approved) = attempt.answered(answer)? {
            return Ok(approved);
        }
    }
}

fn not_held(stream: &str) -> Error {
    Error::halt(format!("{stream} is not held back")).hint("`highwater schemas list` shows which tables are")
}

fn registered(shapes: &[Shape]) -> Vec<StateChange> {
    let put = |shape: &Shape| [put(Shape::state_key(shape.number), shape), remove(Parked::state_key(shape.number))];
    shapes.iter().flat_map(put).collect()
}

async fn append(log: &Log, state: Vec<StateChange>) -> Result<()> {
    let batch = batch(Kind::Control, bytes::Bytes::new(), 0, Micros(i64::MIN), state);
    log.append(batch).await.map_err(log_failed)?.await.map_err(log_failed)?;
    Ok(())
}
