//! The sink.

use std::collections::HashMap;
use std::sync::Arc;

use config::PostgresSink as Config;
use config::WarehouseMode;
use connector::{
    Checkpoint, Error, Malformed, Mark, Moved, Opened, Result, Run, SchemaNumber, Shape, Sink, Step, TableKind, fault,
};
use indexmap::IndexMap;
use storage::{Epoch, LogId, Offset};
use tokio_postgres::Client;

use crate::fold::Fold;
use crate::history::{self, Appended};
use crate::ledger::Ledger;
use crate::merge::Made;
use crate::plan::Plan;
use crate::settings::Settings;
use crate::table::{Mirror, place};
use crate::types::OwnTypes;
use crate::{bag, ddl, error, generation, lane, merge, session};

/// Writes tables of a PostgreSQL warehouse.
pub struct PostgresSink {
    settings: Settings,
    config: Config,
    /// Of this process: tells its own lost answers from another's.
    writer: String,
    open: Option<Open>,
}

/// Nothing: what is staged waits in the sink, or in its open transaction.
#[derive(Debug)]
pub struct Merged(());

struct Open {
    client: Client,
    ledger: Ledger,
    types: OwnTypes,
    plans: HashMap<SchemaNumber, Arc<Plan>>,
    /// By stream.
    mirrors: HashMap<String, Mirror>,
    /// Where each stream goes, of those that were met.
    places: HashMap<String, (String, String)>,
    made: Made,
    /// What waits, by stream and in order.
    waiting: IndexMap<String, Vec<Piece>>,
    /// A transaction is open; the checkpoint as it was locked in it.
    begun: Option<Option<Offset>>,
    /// Of the step, flushed ones too.
    staged: usize,
}

/// What a table has to take, one after the other.
enum Piece {
    Rows(Box<Fold>),
    /// Of a history.
    Append(Box<Appended>),
    /// Only that it is there: a table without rows is a table too.
    Table(Arc<Plan>),
    Begin(Arc<Plan>, u64),
    End(u64),
}

impl PostgresSink {
    /// Of a configuration; connects when it is opened.
    pub fn new(settings: Settings, config: &Config) -> Result<Self> {
        let mut random = [0; 16];
        let read =
            std::fs::File::open("/dev/urandom").and_then(|mut file| std::io::Read::read_exact(&mut file, &mut random));
        read.map_err(|error| Error::halt("could not read /dev/urandom").because(error))?;
        let writer = LogId(random).to_string();
        Ok(Self { settings, config: config.clone(), writer, open: None })
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
        self.open = Some(Open {
            client,
            ledger,
            types: OwnTypes::default(),
            plans: HashMap::new(),
            mirrors: tables.into_iter().map(|mirror| (mirror.stream.clone(), mirror)).collect(),
            places,
            made: Made::default(),
            waiting: IndexMap::new(),
            begun: None,
            staged: 0,
        });
        Ok(Opened { checkpoint, promised: None, parked })
    }

    async fn stage(&mut self, shape: &Arc<Shape>, run: Run<'_>) -> Result<()> {
        if shape.table.kind != TableKind::Table {
            return Ok(());
        }
        let (settings, open) = self.opened()?;
        let plan = open.plan(settings, shape).await?;
        let grown = match settings.mode {
            WarehouseMode::History => {
                let appended = open.appended(&plan);
                make_room(&mut appended.rows, settings.cut_bytes);
                let before = appended.rows.len();
                appended.run(&run, settings.position).map_err(|error| unreadable(shape, error))?;
                appended.rows.len() - before
            }
            WarehouseMode::Mirror => {
                let fold = open.fold(&plan);
                make_room(&mut fold.rows, settings.cut_bytes);
                let before = fold.bytes();
                for change in run.changes() {
                    change.and_then(|change| fold.change(&change)).map_err(|error| unreadable(shape, error))?;
                }
                if let Some(why) = fold.refused {
                    return Err(refused(shape, why));
                }
                fold.bytes().saturating_sub(before)
            }
        };
        open.staged += grown;
        // A transaction of any size: what does not fit into memory goes ahead
        // into the step's own transaction, unseen until that is committed.
        if open.staged >= settings.cut_bytes && open.held() >= settings.cut_bytes {
            open.flush(settings).await?;
        }
        Ok(())
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
        let (settings, open) = self.opened()?;
        open.flush(settings).await?;
        Ok(vec![Merged(())])
    }

    async fn commit(&mut self, _: Vec<Merged>, step: Step) -> Result<Checkpoint> {
        let (settings, open) = self.opened()?;
        let position = step.position.as_ref().map(|position| (settings.position)(position.as_bytes()));
        let from = open.begin().await?;
        match step.lane() {
            None => open.ledger.advance(&open.client, from, &step, position).await?,
            Some(stream) => open.ledger.advance_lane(&open.client, from, stream, &step, position).await?,
        }
        fault::point("pre-commit");
        // If the answer is lost, the outcome is in the row: the next `open` reads
        // it, behind the lock that the server holds until it is decided.
        let committed = open.client.batch_execute("COMMIT").await;
        if let Err(refused) = committed {
            // A deferred constraint, of one table.
            let stream = error::table_of(&refused).and_then(|(schema, name)| {
                let named = |mirror: &&Mirror| (mirror.schema.as_str(), mirror.name.as_str()) == (schema, name);
                open.mirrors.values().find(named).map(|mirror| mirror.stream.clone())
            });
            let failed = error::failed(refused, "could not commit the step");
            return Err(match stream {
                Some(stream) => error::of_table(failed, &stream),
                None => failed,
            });
        }
        fault::point("post-commit");
        open.begun = None;
        open.staged = 0;
        Ok(Checkpoint { next: step.range().end })
    }

    async fn move_to(&mut self, to: Offset) -> Result<Moved> {
        let (settings, open) = self.opened()?;
        lane::move_to(&open.client, &open.ledger, open.mirrors.values(), settings, to).await?;
        Ok(Moved::Done)
    }

    async fn park(&mut self, stream: &str, at: Offset, why: &str) -> Result<bool> {
        let (settings, open) = self.opened()?;
        let place = open.places.get(stream).cloned();
        open.ledger.park(&open.client, stream, place, mode(settings), at, why).await?;
        Ok(true)
    }

    fn tells_time(&self) -> bool {
        true
    }

    fn is_full(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.staged >= self.settings.cut_bytes)
    }
}

impl Open {
    async fn plan(&mut self, settings: &Settings, shape: &Arc<Shape>) -> Result<Arc<Plan>> {
        if let Some(plan) = self.plans.get(&shape.number) {
            return Ok(plan.clone());
        }
        let stream = shape.table.stream();
        self.places.insert(stream.clone(), place(&shape.table, settings.schema.as_deref()));
        self.types.learn(&self.client, &shape.table).await.map_err(|error| error::of_table(error, &stream))?;
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

    fn held(&self) -> usize {
        let rows = self.waiting.values().flatten().map(|piece| match piece {
            Piece::Rows(fold) => fold.bytes(),
            Piece::Append(rows) => rows.rows.len(),
            _ => 0,
        });
        rows.sum()
    }

    /// Begins the step's transaction, once; the checkpoint as it is locked.
    async fn begin(&mut self) -> Result<Option<Offset>> {
        if let Some(from) = self.begun {
            return Ok(from);
        }
        let from = self.ledger.begin(&self.client).await?;
        self.made.begin();
        self.begun = Some(from);
        Ok(from)
    }

    /// Writes what waits, within the step's transaction.
    async fn flush(&mut self, settings: &Settings) -> Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        self.begin().await?;
        for (stream, pieces) in std::mem::take(&mut self.waiting) {
            let applied = self.apply(settings, &stream, pieces).await;
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
        let fits = |mirror: &Mirror| mirror.shape == plan.shape.number || (history && mirror.takes_older(&plan.shape));
        if !known.is_some_and(fits) {
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
}

/// Room for a step at once, where more than a little waits. A buffer that grows
/// leaves the places where it was behind, and the allocator gives few of them
/// back; one of a step's size is a mapping of its own, of which only what is
/// written to is memory, and which goes as a whole. (Four sinks of a backlog on
/// glibc: 280 MiB before, 94 of them in use.)
fn make_room(rows: &mut Vec<u8>, step: usize) {
    const LITTLE: usize = 1 << 20;
    const MOST: usize = 64 << 20;
    // What ends a step goes a little beyond its size.
    let room = step.min(MOST) + 4 * LITTLE;
    if rows.len() > LITTLE && rows.capacity() < room {
        rows.reserve_exact(room - rows.len());
    }
}

fn mode(settings: &Settings) -> &'static str {
    match settings.mode {
        WarehouseMode::Mirror => "mirror",
        WarehouseMode::History => "history",
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
