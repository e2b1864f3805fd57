//! A session in the warehouse, and what a step writes in its one transaction.

use std::collections::HashMap;
use std::sync::Arc;

use config::WarehouseMode;
use connector::{Checkpoint, Result, Step, fault};
use futures_util::future::join;
use indexmap::IndexMap;
use storage::Offset;
use tokio_postgres::Client;

use crate::fold::Fold;
use crate::history::{self, Appended};
use crate::ledger::Ledger;
use crate::merge::Made;
use crate::plan::Plan;
use crate::settings::Settings;
use crate::table::{Mirror, place};
use crate::{bag, ddl, error, generation, merge};

/// What waits to be written, by stream and in order.
pub(crate) type Waiting = IndexMap<String, Vec<Piece>>;

/// What a table has to take, one after the other.
pub(crate) enum Piece {
    Rows(Box<Fold>),
    /// Of a history.
    Append(Box<Appended>),
    /// Only that it is there: a table without rows is a table too.
    Table(Arc<Plan>),
    Begin(Arc<Plan>, u64),
    End(u64),
}

impl Piece {
    fn plan(&self) -> Option<&Plan> {
        match self {
            Piece::Rows(fold) => Some(&fold.plan),
            Piece::Append(rows) => Some(&rows.plan),
            Piece::Table(plan) | Piece::Begin(plan, _) => Some(plan),
            Piece::End(_) => None,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Piece::Rows(fold) => fold.bytes(),
            Piece::Append(rows) => rows.rows.len(),
            Piece::Table(_) | Piece::Begin(..) | Piece::End(_) => 0,
        }
    }
}

/// Memory that it takes, near enough.
pub(crate) fn bytes(waiting: &Waiting) -> usize {
    waiting.values().flatten().map(Piece::bytes).sum()
}

/// A session.
pub(crate) struct Work {
    pub(crate) client: Client,
    pub(crate) ledger: Ledger,
    /// By stream.
    pub(crate) mirrors: HashMap<String, Mirror>,
    made: Made,
    /// A transaction is open; the checkpoint as it was locked in it.
    begun: Option<Option<Offset>>,
    settings: Arc<Settings>,
}

impl Work {
    pub(crate) fn new(client: Client, ledger: Ledger, tables: Vec<Mirror>, settings: Arc<Settings>) -> Self {
        let mirrors = tables.into_iter().map(|mirror| (mirror.stream.clone(), mirror)).collect();
        Self { client, ledger, mirrors, made: Made::default(), begun: None, settings }
    }

    /// Takes out of what waits what may go ahead, if there is enough of it. Rows
    /// that are changed again and again are written once, at the end; and nobody
    /// can read a table from its being altered until the commit.
    pub(crate) async fn ready(&mut self, waiting: &mut Waiting, enough: usize) -> Result<Waiting> {
        let settled = waiting.iter().all(|(stream, pieces)| {
            let unsettled = |piece: &Piece| matches!(piece, Piece::Rows(fold) if !fold.is_settled());
            !pieces.iter().any(|piece| unsettled(piece) || self.alters(stream, piece))
        });
        let mut ready = Waiting::new();
        for (stream, pieces) in waiting.iter_mut() {
            let parts = match pieces.as_mut_slice() {
                [Piece::Rows(fold)] => fold.news.row_bytes() >= enough / 32 && !(settled && fold.images.is_empty()),
                _ => false,
            };
            let parts = parts && !self.alters(stream, &pieces[0]) && self.takes_any_order(stream, &pieces[0]).await?;
            match pieces.as_mut_slice() {
                [Piece::Rows(fold)] if parts => {
                    ready.insert(stream.clone(), vec![Piece::Rows(Box::new(fold.take_new()))]);
                }
                _ if settled => {
                    ready.insert(stream.clone(), std::mem::take(pieces));
                }
                _ => {}
            }
        }
        waiting.retain(|_, pieces| !pieces.is_empty());
        Ok(ready)
    }

    fn alters(&self, stream: &str, piece: &Piece) -> bool {
        let there = self.mirrors.get(stream);
        piece.plan().is_some_and(|plan| there.is_some_and(|mirror| !self.fits(mirror, plan)))
    }

    /// Whether its rows may come before others of their step that are older. Made
    /// if it is not there, which nobody sees.
    async fn takes_any_order(&mut self, stream: &str, piece: &Piece) -> Result<bool> {
        let Some(plan) = piece.plan() else { return Ok(false) };
        self.begin().await?;
        let settings = self.settings.clone();
        let mirror = self.shaped(&settings, plan).await.cloned();
        let mirror = mirror.map_err(|error| error::of_table(error, stream))?;
        self.made.takes_any_order(&self.client, &mirror).await
    }

    fn fits(&self, mirror: &Mirror, plan: &Plan) -> bool {
        let history = self.settings.mode == WarehouseMode::History;
        mirror.shape == plan.shape.number || (history && mirror.takes_older(&plan.shape))
    }

    /// Begins the step's transaction, once; the checkpoint as it is locked.
    pub(crate) async fn begin(&mut self) -> Result<Option<Offset>> {
        if let Some(from) = self.begun {
            return Ok(from);
        }
        let from = self.ledger.begin(&self.client).await?;
        self.made.begin();
        self.begun = Some(from);
        Ok(from)
    }

    /// Writes what waits, within the step's transaction.
    pub(crate) async fn write(&mut self, waiting: Waiting) -> Result<()> {
        if waiting.is_empty() {
            return Ok(());
        }
        self.begin().await?;
        let settings = self.settings.clone();
        for (stream, pieces) in waiting {
            let applied = self.apply(&settings, &stream, pieces).await;
            applied.map_err(|error| error::of_table(error, &stream))?;
            fault::point("half-merged");
        }
        Ok(())
    }

    /// Writes what waits of one table.
    async fn apply(&mut self, settings: &Settings, stream: &str, pieces: Vec<Piece>) -> Result<()> {
        for piece in pieces {
            match piece {
                Piece::Rows(fold) if fold.is_empty() => {}
                Piece::Rows(fold) => {
                    let mirror = self.shaped(settings, &fold.plan).await?.clone();
                    if fold.plan.has_key() {
                        merge::merge(&self.client, &mut self.made, &mirror, &fold).await?;
                    } else {
                        bag::merge(&self.client, &mut self.made, &mirror, &fold).await?;
                    }
                }
                Piece::Append(rows) => {
                    let mirror = self.shaped(settings, &rows.plan).await?.clone();
                    history::append(&self.client, &mut self.made, &mirror, &rows, settings).await?;
                }
                Piece::Table(plan) => {
                    self.shaped(settings, &plan).await?;
                }
                Piece::Begin(plan, generation) => {
                    // A table that is made now holds nothing to sweep.
                    let new = !self.mirrors.contains_key(stream);
                    self.shaped(settings, &plan).await?;
                    if new {
                        continue;
                    }
                    if let Some(mirror) = self.mirrors.get_mut(stream) {
                        generation::begin(&self.client, mirror, generation).await?;
                        self.ledger.remember(&self.client, mirror, mode(settings)).await?;
                    }
                }
                Piece::End(generation) => {
                    if let Some(mirror) = self.mirrors.get_mut(stream) {
                        generation::end(&self.client, mirror, generation).await?;
                        self.ledger.remember(&self.client, mirror, mode(settings)).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The table of a plan, made or altered to its shape.
    async fn shaped(&mut self, settings: &Settings, plan: &Plan) -> Result<&Mirror> {
        let stream = plan.shape.table.stream();
        let known = self.mirrors.get(&stream);
        let history = settings.mode == WarehouseMode::History;
        if !known.is_some_and(|mirror| self.fits(mirror, plan)) {
            let own = if history { history::columns(plan, &settings.meta_prefix) } else { Vec::new() };
            let mut mirror = match known {
                None => {
                    ddl::create(&self.client, plan, place(&plan.shape.table, settings.schema.as_deref()), &own).await?
                }
                Some(known) => {
                    let mut mirror = known.clone();
                    if history {
                        history::views::drop(&self.client, &mirror).await?;
                    }
                    ddl::align(&self.client, &mut mirror, plan, settings.drop, &own).await?;
                    mirror
                }
            };
            if history {
                history::views::make(&self.client, &mirror, plan, &settings.meta_prefix).await?;
            } else {
                let columns = &plan.shape.table.columns;
                let key = plan.shape.table.key.iter().map(|&i| columns[i].name.clone()).collect();
                ddl::align_key(&self.client, &mut mirror, key).await?;
                // What a reading notes has the form of the key as it was.
                if known.is_some_and(|known| mirror.key.is_empty() || known.key_types() != mirror.key_types()) {
                    generation::abandon(&self.client, &mut mirror).await?;
                }
            }
            self.ledger.remember(&self.client, &mirror, mode(settings)).await?;
            // Statements name columns and types as they were.
            self.made.forget();
            self.mirrors.insert(stream.clone(), mirror);
            fault::point("table-altered");
        }
        Ok(&self.mirrors[&stream])
    }

    /// Moves the checkpoint on and commits.
    pub(crate) async fn commit(&mut self, step: Step, position: Option<String>) -> Result<Checkpoint> {
        let from = self.begin().await?;
        if let Some(stream) = step.lane() {
            self.ledger.advance_lane(&self.client, from, stream, &step, position).await?;
            fault::point("pre-commit");
            self.end().await?;
        } else {
            self.ledger.goes_on(from, &step)?;
            fault::point("pre-commit");
            // Sent together: if the checkpoint cannot be moved, the server makes a
            // ROLLBACK of the COMMIT, and it is the first answer that counts.
            let moved = self.ledger.advance(&self.client, &step, position);
            let (moved, ended) = join(moved, self.end()).await;
            moved.and(ended)?;
        }
        fault::point("post-commit");
        self.begun = None;
        Ok(Checkpoint { next: step.range().end })
    }

    /// COMMIT. If the answer is lost, the outcome is in the checkpoint's row: the
    /// next `open` reads it, behind the lock that the server holds until it is decided.
    async fn end(&self) -> Result<()> {
        let Err(refused) = self.client.batch_execute("COMMIT").await else { return Ok(()) };
        // A deferred constraint, of one table.
        let stream = error::table_of(&refused).and_then(|(schema, name)| {
            let named = |mirror: &&Mirror| (mirror.schema.as_str(), mirror.name.as_str()) == (schema, name);
            self.mirrors.values().find(named).map(|mirror| mirror.stream.clone())
        });
        let failed = error::failed(refused, "could not commit the step");
        Err(match stream {
            Some(stream) => error::of_table(failed, &stream),
            None => failed,
        })
    }
}

pub(crate) fn mode(settings: &Settings) -> &'static str {
    match settings.mode {
        WarehouseMode::Mirror => "mirror",
        WarehouseMode::History => "history",
    }
}
