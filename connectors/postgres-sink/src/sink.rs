//! The sink.

use std::collections::HashMap;
use std::sync::Arc;

use config::PostgresSink as Config;
use config::WarehouseMode;
use connector::{
    Checkpoint, Error, Malformed, Mark, Moved, Opened, Result, Run, SchemaNumber, Shape, Sink, Step, TableKind,
};
use storage::{Epoch, LogId, Offset};

use crate::fold::Fold;
use crate::history::Appended;
use crate::ledger::Ledger;
use crate::line::Line;
use crate::plan::Plan;
use crate::room::make_room;
use crate::settings::Settings;
use crate::table::place;
use crate::types::OwnTypes;
use crate::work::{Piece, Waiting, Work, mode};
use crate::{error, lane, session, work};

/// Writes tables of a PostgreSQL warehouse.
pub struct PostgresSink {
    settings: Arc<Settings>,
    config: Config,
    /// Of this process: tells its own lost answers from another's.
    writer: String,
    open: Option<Open>,
}

/// Nothing: what is staged waits in the sink, or in its open transaction.
#[derive(Debug)]
pub struct Merged(());

struct Open {
    line: Line,
    types: OwnTypes,
    plans: HashMap<SchemaNumber, Arc<Plan>>,
    /// Where each stream goes, of those that were met.
    places: HashMap<String, (String, String)>,
    waiting: Waiting,
    /// Bytes that wait.
    held: usize,
    /// So many must wait before it is looked at again whether some go ahead.
    look_at: usize,
    /// Bytes of the step that went ahead.
    ahead: usize,
}

/// Enough to be worth statements of its own, while the step gathers on and the
/// server has nothing else of ours to do. More waits by itself while it has.
const PIECE: usize = 2 << 20;

impl PostgresSink {
    /// Of a configuration; connects when it is opened.
    pub fn new(settings: Settings, config: &Config) -> Result<Self> {
        let mut random = [0; 16];
        let read =
            std::fs::File::open("/dev/urandom").and_then(|mut file| std::io::Read::read_exact(&mut file, &mut random));
        read.map_err(|error| Error::halt("could not read /dev/urandom").because(error))?;
        let writer = LogId(random).to_string();
        Ok(Self { settings: Arc::new(settings), config: config.clone(), writer, open: None })
    }

    fn opened(&mut self) -> Result<(&Settings, &mut Open)> {
        let open = self.open.as_mut().ok_or_else(|| Error::retry("the sink is not open"))?;
        Ok((&self.settings, open))
    }
}

impl Sink for PostgresSink {
    type Staged = Merged;

    async fn open(&mut self, log: LogId, epoch: Epoch) -> Result<Opened> {
        // Without the session its transaction is over.
        let places = self.open.take().map(|open| open.places).unwrap_or_default();
        let mut client = session::connect(&self.config.server).await?;
        let (ledger, checkpoint) = Ledger::take_over(&mut client, &self.settings, log, epoch, &self.writer).await?;
        let tables = ledger.tables(&client, mode(&self.settings)).await?;
        let parked = ledger.parked(&client).await?;
        let work = Work::new(client, ledger, tables, self.settings.clone());
        self.open = Some(Open {
            line: Line::new(work),
            types: OwnTypes::default(),
            plans: HashMap::new(),
            places,
            waiting: Waiting::new(),
            held: 0,
            look_at: 0,
            ahead: 0,
        });
        Ok(Opened { checkpoint, promised: None, parked })
    }

    async fn stage(&mut self, shape: &Arc<Shape>, run: Run<'_>) -> Result<()> {
        if shape.table.kind != TableKind::Table {
            return Ok(());
        }
        let (settings, open) = self.opened()?;
        let plan = open.plan(settings, shape).await?;
        let (before, after) = match settings.mode {
            WarehouseMode::History => {
                let appended = open.appended(&plan);
                make_room(&mut appended.rows, settings.held_bytes);
                let before = appended.rows.len();
                appended.run(&run, settings.position).map_err(|error| unreadable(shape, error))?;
                (before, appended.rows.len())
            }
            WarehouseMode::Mirror => {
                let fold = open.fold(&plan);
                fold.make_room(settings.held_bytes);
                let before = fold.bytes();
                for change in run.changes() {
                    change.and_then(|change| fold.change(&change)).map_err(|error| unreadable(shape, error))?;
                }
                if let Some(why) = fold.refused {
                    return Err(refused(shape, why));
                }
                (before, fold.bytes())
            }
        };
        open.held = open.held + after - before;
        open.write_ahead(settings.held_bytes).await
    }

    async fn stage_mark(&mut self, shape: &Arc<Shape>, mark: &Mark, offset: Offset) -> Result<()> {
        if shape.table.kind != TableKind::Table {
            return Ok(());
        }
        let (settings, open) = self.opened()?;
        let plan = open.plan(settings, shape).await?;
        // The first reading of a table is its beginning: nothing went before.
        if mark.generation <= 1 {
            if mark.op == Mark::BEGIN {
                open.waiting.entry(shape.table.stream()).or_default().push(Piece::Table(plan));
            }
            return Ok(());
        }
        if settings.mode == WarehouseMode::History {
            open.appended(&plan).mark(mark, offset.0, &(settings.position)(&mark.position));
            return Ok(());
        }
        let piece = match mark.op.as_str() {
            Mark::BEGIN => Piece::Begin(plan, mark.generation),
            Mark::END => Piece::End(mark.generation),
            _ => return Ok(()),
        };
        open.waiting.entry(shape.table.stream()).or_default().push(piece);
        Ok(())
    }

    async fn staged(&mut self) -> Result<Vec<Merged>> {
        let (_, open) = self.opened()?;
        let work = open.line.here().await?;
        work.write(std::mem::take(&mut open.waiting)).await?;
        (open.held, open.look_at) = (0, 0);
        Ok(vec![Merged(())])
    }

    async fn commit(&mut self, _: Vec<Merged>, step: Step) -> Result<Checkpoint> {
        let (settings, open) = self.opened()?;
        let position = step.position.as_ref().map(|position| (settings.position)(position.as_bytes()));
        let checkpoint = open.line.here().await?.commit(step, position).await?;
        open.ahead = 0;
        Ok(checkpoint)
    }

    async fn move_to(&mut self, to: Offset) -> Result<Moved> {
        let (settings, open) = self.opened()?;
        let work = open.line.here().await?;
        lane::move_to(&work.client, &work.ledger, work.mirrors.values(), settings, to).await?;
        Ok(Moved::Done)
    }

    async fn park(&mut self, stream: &str, at: Offset, why: &str) -> Result<bool> {
        let (settings, open) = self.opened()?;
        let place = open.places.get(stream).cloned();
        let work = open.line.here().await?;
        work.ledger.park(&work.client, stream, place, mode(settings), at, why).await?;
        Ok(true)
    }

    fn tells_time(&self) -> bool {
        true
    }

    fn is_full(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.ahead + open.held >= self.settings.cut_bytes)
    }
}

impl Open {
    async fn plan(&mut self, settings: &Settings, shape: &Arc<Shape>) -> Result<Arc<Plan>> {
        if let Some(plan) = self.plans.get(&shape.number) {
            return Ok(plan.clone());
        }
        let stream = shape.table.stream();
        self.places.insert(stream.clone(), place(&shape.table, settings.schema.as_deref()));
        let client = &self.line.here().await?.client;
        self.types.learn(client, &shape.table).await.map_err(|error| error::of_table(error, &stream))?;
        let plan = Arc::new(Plan::new(shape.clone(), &self.types));
        self.plans.insert(shape.number, plan.clone());
        Ok(plan)
    }

    /// The fold that takes the next rows of a plan's table.
    fn fold(&mut self, plan: &Arc<Plan>) -> &mut Fold {
        let pieces = self.waiting.entry(plan.shape.table.stream()).or_default();
        let fits = matches!(pieces.last(), Some(Piece::Rows(fold)) if fold.plan.shape.number == plan.shape.number);
        if !fits {
            pieces.push(Piece::Rows(Box::new(Fold::new(plan.clone()))));
        }
        match pieces.last_mut() {
            Some(Piece::Rows(fold)) => fold,
            _ => unreachable!("it was pushed above"),
        }
    }

    /// The rows of a history that take the next ones of a plan's table.
    fn appended(&mut self, plan: &Arc<Plan>) -> &mut Appended {
        let pieces = self.waiting.entry(plan.shape.table.stream()).or_default();
        let fits = matches!(pieces.last(), Some(Piece::Append(rows)) if rows.plan.shape.number == plan.shape.number);
        if !fits {
            pieces.push(Piece::Append(Box::new(Appended::new(plan.clone()))));
        }
        match pieces.last_mut() {
            Some(Piece::Append(rows)) => rows,
            _ => unreachable!("it was pushed above"),
        }
    }

    /// What waits goes into the step's own transaction, unseen until that is
    /// committed, while the step gathers on: so that the server works as we do,
    /// and a transaction of any size fits into `most` bytes.
    async fn write_ahead(&mut self, most: usize) -> Result<()> {
        let piece = PIECE.min(most / 2);
        if self.held < self.look_at.max(piece) {
            return Ok(());
        }
        // What the server is at is held too.
        let full = self.held >= if self.line.is_free() { most } else { most / 2 };
        if !full && !self.line.is_free() {
            return Ok(());
        }
        let mut ready = self.line.here().await?.ready(&mut self.waiting, piece).await?;
        self.held = work::bytes(&self.waiting);
        if full && self.held >= most / 2 {
            // No room to wait in.
            for (stream, pieces) in std::mem::take(&mut self.waiting) {
                ready.entry(stream).or_default().extend(pieces);
            }
            self.held = 0;
        }
        self.look_at = self.held + piece;
        if ready.is_empty() {
            return Ok(());
        }
        self.ahead += work::bytes(&ready);
        self.line.send(ready).await
    }
}

fn unreadable(shape: &Shape, error: Malformed) -> Error {
    Error::halt(format!("a row of {} in the log cannot be read", shape.table.stream()))
        .because(error)
        .hint("run `highwater log check`")
}

fn refused(shape: &Shape, why: &str) -> Error {
    let stream = shape.table.stream();
    let table = format!("{}.{}", shape.table.schema, shape.table.name);
    let refused = Error::halt(format!("{table} has no key and {why}: its rows cannot be told apart")).hint(format!(
        "at the source: ALTER TABLE {table} REPLICA IDENTITY FULL, or add a primary key; or leave the table out"
    ));
    refused.of_stream(&stream)
}
