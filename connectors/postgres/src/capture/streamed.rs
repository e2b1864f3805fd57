//! Transactions that the server streams while they are in progress.
//!
//! ```text
//!  chunk ──► rows of tables that are as the catalog has them: encoded ──┐
//!        └─► everything else: as it came ──────────────────────────────┴─► spool, by top-level xid
//!  Stream Commit ──► the spool's records in their order ──► batches for the log
//! ```
//!
//! What a table's shape is can be judged only at commit: an ALTER in the
//! transaction may be rolled back, and until then the catalog shows it to
//! nobody else. So chunks ask the catalog for nothing and change nothing that
//! other transactions use. Rows of a table whose relation message is what we
//! know the table as are encoded at once, under a number that stands for the
//! description; the schema's own number is put in when they are copied. Any
//! other message (of a table that this transaction has altered or made, with an
//! old row, with columns not sent, too large, or that cannot be encoded) waits
//! as it is, and is taken at commit as it would be outside a stream.
//!
//! A Stream Abort of a subtransaction makes the server describe tables anew, so
//! what was known of them in this transaction is forgotten then.
//! <https://www.postgresql.org/docs/current/protocol-logical-replication.html>

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use connector::{BatchWriter, Error, Malformed, Op, Result, RowExtras, SchemaNumber, Schemas, fault};
use storage::Micros;

use super::{Capture, Flow, Known, PIECE, Transaction, malformed, refused};
use crate::lsn::Lsn;
use crate::pgoutput::{self, Message, Relation, Tuple, decode, decode_streamed};
use crate::plan::{Plan, ValueError};
use crate::spool::{Kind, Records, Spool};

/// An encoded piece is put into the spool at this size.
const CUT: usize = 256 << 10;
/// A row larger than this is not encoded before its time: it would be there twice.
const LARGE: usize = 1 << 20;
/// So much of the spool is read before the server is heard and told again.
const STRETCH: u64 = 4 << 20;

/// What is known of transactions in progress.
pub(super) struct Streamed {
    spool: Spool,
    open: HashMap<u32, InProgress>,
    chunk: Option<Chunk>,
    replay: Option<Replay>,
    writer: BatchWriter,
    absent: Vec<u8>,
    /// Counts relation messages.
    serial: u64,
    /// By relation, the serial of the message that `known` is from.
    told: HashMap<u32, u64>,
}

/// A chunk that is being sent.
struct Chunk {
    xid: u32,
    tx: String,
    transaction: InProgress,
    /// Whose rows the writer holds.
    sub: Option<u32>,
}

#[derive(Default)]
struct InProgress {
    /// Every description that came, once.
    descriptions: Vec<Description>,
    /// By relation: which one, and of which epoch.
    current: HashMap<u32, (usize, u64)>,
    /// Counts subtransactions rolled back.
    epoch: u64,
    aborted: HashSet<u32>,
}

impl InProgress {
    /// How the transaction describes a relation.
    #[inline]
    fn described(&self, relation: u32) -> Result<(usize, &Description)> {
        match self.current.get(&relation) {
            Some((number, epoch)) if *epoch == self.epoch => Ok((*number, &self.descriptions[*number])),
            _ => {
                let what = "a transaction in progress has a row of relation";
                Err(Error::retry(format!("{what} {relation} that it did not describe")))
            }
        }
    }
}

struct Description {
    message: Vec<u8>,
    serial: u64,
    wanted: bool,
    /// None: rows wait as they came.
    plan: Option<Arc<Plan>>,
}

/// A transaction on its way from the spool to the log.
struct Replay {
    xid: u32,
    end: Lsn,
    transaction: InProgress,
    records: Records,
    /// By description; known once one of its rows is met.
    numbers: Vec<Option<SchemaNumber>>,
    /// Descriptions that count, by relation.
    current: HashMap<u32, usize>,
    /// What came outside meanwhile, and is put back behind the transaction.
    newer: Vec<(u32, u64, Known)>,
}

impl Streamed {
    pub(super) fn new(spool: Spool) -> Self {
        Self {
            spool,
            open: HashMap::new(),
            chunk: None,
            replay: None,
            writer: BatchWriter::new(),
            absent: Vec::new(),
            serial: 0,
            told: HashMap::new(),
        }
    }

    /// A chunk is being sent.
    #[inline]
    pub(super) fn is_inside(&self) -> bool {
        self.chunk.is_some()
    }

    /// A relation message that counts at once.
    pub(super) fn tells(&mut self, relation: u32) {
        self.serial += 1;
        self.told.insert(relation, self.serial);
    }

    /// A chunk begins, with `first` that of a transaction that was not met before.
    pub(super) fn start(&mut self, xid: u32, first: bool) -> Result<()> {
        if first && self.open.remove(&xid).is_some() {
            self.spool.remove(xid);
        }
        self.spool.begin(xid)?;
        let transaction = self.open.remove(&xid).unwrap_or_default();
        self.chunk = Some(Chunk { xid, tx: xid.to_string(), transaction, sub: None });
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        self.cut()?;
        if let Some(Chunk { xid, transaction, .. }) = self.chunk.take() {
            self.open.insert(xid, transaction);
        }
        self.spool.end()?;
        fault::point("spool-chunk");
        Ok(())
    }

    /// A transaction, or a part of it, is rolled back.
    pub(super) fn abort(&mut self, xid: u32, sub: u32) {
        // One that ended before the slot's start may not have been streamed to us.
        let Some(transaction) = self.open.get_mut(&xid) else { return };
        if xid == sub {
            self.open.remove(&xid);
            self.spool.remove(xid);
        } else {
            transaction.epoch += 1;
            transaction.aborted.insert(sub);
        }
    }

    /// The piece that was encoded so far goes before what comes now.
    fn cut(&mut self) -> Result<()> {
        let sub = self.chunk.as_mut().and_then(|chunk| chunk.sub.take());
        match (sub, self.writer.take()) {
            (Some(sub), Some((payload, _))) => self.spool.append(Kind::Piece, sub, [&payload, &[]]),
            _ => Ok(()),
        }
    }

    /// A message waits as it came: without the xid, as outside a stream.
    fn keep(&mut self, sub: u32, message: &[u8]) -> Result<()> {
        self.cut()?;
        self.spool.append(Kind::Message, sub, [&message[..1], &message[5..]])
    }

    fn describe(
        &mut self,
        sub: u32,
        message: &[u8],
        relation: &Relation,
        make: impl FnOnce() -> (bool, Option<Arc<Plan>>),
    ) -> Result<()> {
        self.cut()?;
        self.serial += 1;
        let Some(Chunk { transaction, .. }) = &mut self.chunk else { return Ok(()) };
        let descriptions = &mut transaction.descriptions;
        let known = transaction.current.get(&relation.id).map(|(number, _)| *number);
        let number = match known.filter(|&number| descriptions[number].message == message[5..]) {
            Some(number) => number,
            None => {
                let (wanted, plan) = make();
                descriptions.push(Description { message: message[5..].to_vec(), serial: 0, wanted, plan });
                descriptions.len() - 1
            }
        };
        descriptions[number].serial = self.serial;
        transaction.current.insert(relation.id, (number, transaction.epoch));
        let mut head = [b'R'; 5];
        head[..4].copy_from_slice(&(number as u32).to_le_bytes());
        self.spool.append(Kind::Relation, sub, [&head, &message[5..]])
    }

    /// Encodes a row, if it is one that can be encoded now.
    #[inline]
    fn row(
        &mut self,
        sub: u32,
        message: &[u8],
        relation: u32,
        op: Op,
        tuple: Tuple<'_>,
        write: impl FnOnce(&Plan, &mut Vec<u8>, &mut Vec<u8>) -> Result<bool, ValueError>,
    ) -> Result<()> {
        if self.writer.len() >= CUT || self.chunk.as_ref().is_some_and(|chunk| chunk.sub != Some(sub)) {
            self.cut()?;
        }
        let Some(chunk) = &mut self.chunk else { return Ok(()) };
        let (number, description) = chunk.transaction.described(relation)?;
        if !description.wanted {
            return Ok(());
        }
        let plan = match &description.plan {
            Some(plan) if plan.width() == tuple.len() && message.len() <= LARGE => plan,
            _ => return self.keep(sub, message),
        };
        if chunk.sub.is_none() {
            chunk.sub = Some(sub);
            self.writer.begin_open(8, Micros(0), &chunk.tx, 0);
        }
        let written = write(plan, self.writer.open_row(number as SchemaNumber), &mut self.absent);
        let extras = match written {
            Ok(false) => RowExtras::default(),
            Ok(true) if op == Op::Delete => RowExtras { absent: Some(&self.absent), ..RowExtras::default() },
            _ => {
                self.writer.drop_row();
                return self.keep(sub, message);
            }
        };
        self.writer.close_row(op, extras);
        Ok(())
    }
}

impl<S: Schemas> Capture<S> {
    /// Takes one message of a chunk.
    pub(super) fn chunk(&mut self, message: &[u8]) -> Result<Flow> {
        match message.first() {
            Some(b'E') => {
                decode(message).map_err(malformed)?;
                self.streamed.stop()?;
                return Ok(Flow::On);
            }
            // Where the transaction came from: the one message without an xid.
            Some(b'O') => return Ok(Flow::On),
            _ => {}
        }
        let (sub, decoded) = decode_streamed(message).map_err(malformed)?;
        let (streamed, compiler) = (&mut self.streamed, &self.compiler);
        match decoded {
            Message::Insert { relation, new } => {
                streamed.row(sub, message, relation, Op::Insert, new, |plan, out, absent| {
                    plan.value(new, None, out, absent)
                })?;
            }
            Message::Update { relation, old: None, new } => {
                streamed.row(sub, message, relation, Op::Update, new, |plan, out, absent| {
                    plan.value(new, None, out, absent)
                })?;
            }
            Message::Delete { relation, old } if !old.whole => {
                streamed.row(sub, message, relation, Op::Delete, old.tuple, |plan, out, absent| {
                    plan.key_only(old.tuple, out, absent)
                })?;
            }
            Message::Update { relation, .. } | Message::Delete { relation, .. } => {
                let described = streamed.chunk.as_ref().map(|chunk| chunk.transaction.described(relation));
                if described.transpose()?.is_some_and(|(_, description)| description.wanted) {
                    streamed.keep(sub, message)?;
                }
            }
            Message::Relation(relation) => streamed.describe(sub, message, &relation, || {
                let wanted = compiler.wants(relation.id, &relation.namespace, &relation.name);
                (wanted, wanted.then(|| compiler.plan_as_known(&relation)).flatten().map(Arc::new))
            })?,
            Message::Truncate { .. } | Message::Logical { .. } => streamed.keep(sub, message)?,
            Message::Ignored => {}
            Message::Refused(what) => return Err(refused(what)),
            _ => {
                let what = "a transaction's begin or end in the middle of another's chunk";
                return Err(malformed(pgoutput::Malformed { what, at: 0 }));
            }
        }
        Ok(Flow::On)
    }

    /// A streamed transaction was committed: `replay` writes it.
    pub(super) fn stream_commit(&mut self, xid: u32, commit: Lsn, end: Lsn, time: i64) -> Result<Flow> {
        let Some(transaction) = self.streamed.open.remove(&xid) else {
            return Err(Error::retry(format!("transaction {xid} was committed, and nothing of it was streamed")));
        };
        self.transaction = Some(Transaction { end: Some(end), ..Transaction::new(xid, commit, time, self.resume) });
        self.streamed.replay = Some(Replay {
            xid,
            end,
            numbers: vec![None; transaction.descriptions.len()],
            transaction,
            records: self.streamed.spool.read(xid)?,
            current: HashMap::new(),
            newer: Vec::new(),
        });
        Ok(Flow::Begun(commit))
    }

    /// Whether a transaction is on its way from the spool.
    #[inline]
    pub(crate) fn is_replaying(&self) -> bool {
        self.streamed.replay.is_some()
    }

    /// Bytes of transactions in progress.
    #[inline]
    pub(crate) fn spooled(&self) -> u64 {
        self.streamed.spool.bytes()
    }

    /// Writes more of the transaction that was committed.
    pub(crate) fn replay(&mut self) -> Result<Flow> {
        let Some(mut replay) = self.streamed.replay.take() else { return Ok(Flow::On) };
        let mut stretch = 0;
        loop {
            let aborted = &replay.transaction.aborted;
            let Some((kind, body, passed)) = replay.records.next(|xid| aborted.contains(&xid))? else {
                for (relation, serial, known) in replay.newer.drain(..) {
                    self.streamed.told.insert(relation, serial);
                    self.known.insert(relation, known);
                }
                self.streamed.spool.remove(replay.xid);
                return self.commit(replay.end);
            };
            stretch += passed;
            let flow = match kind {
                Kind::Message => self.message(body)?,
                Kind::Relation => {
                    let (number, message) = body.split_first_chunk().ok_or_else(cut_short)?;
                    let Message::Relation(relation) = decode(message).map_err(malformed)? else {
                        return Err(cut_short());
                    };
                    let number = u32::from_le_bytes(*number) as usize;
                    let description = replay.transaction.descriptions.get(number).ok_or_else(cut_short)?;
                    if replay.current.insert(relation.id, number) != Some(number) {
                        let id = relation.id;
                        let told = self.streamed.told.get(&id).copied().unwrap_or(0);
                        if told > description.serial
                            && let Some(known) = self.known.remove(&id)
                        {
                            replay.newer.push((id, told, known));
                        }
                        self.relation(relation)?;
                        self.streamed.told.insert(id, description.serial);
                        replay.numbers[number] = match (self.known.get(&id), &description.plan) {
                            // Encoded under the very shape that it has.
                            (Some(Known::Captured(now)), Some(plan)) if now.plan.table == plan.table => {
                                Some(now.number)
                            }
                            _ => None,
                        };
                    }
                    Flow::On
                }
                Kind::Piece => self.splice(&mut replay.numbers, &replay.transaction.descriptions, replay.end, body)?,
            };
            if flow != Flow::On || stretch >= STRETCH {
                self.streamed.replay = Some(replay);
                return Ok(flow);
            }
        }
    }

    /// Copies a piece that was encoded before its time.
    fn splice(
        &mut self,
        numbers: &mut [Option<SchemaNumber>],
        descriptions: &[Description],
        end: Lsn,
        payload: &[u8],
    ) -> Result<Flow> {
        let Some(transaction) = self.transaction.as_mut().filter(|transaction| !transaction.held) else {
            return Ok(Flow::On);
        };
        let (schemas, state) = (&self.compiler.schemas, &mut self.state);
        let number = |description: u32| {
            let at = description as usize;
            match (numbers.get(at), descriptions.get(at).and_then(|description| description.plan.as_ref())) {
                (Some(Some(number)), _) => Ok(*number),
                // The catalog has moved on since: rows are what they were encoded as.
                (Some(None), Some(plan)) => {
                    let resolved = schemas.resolve(&plan.table).map_err(Unspliced::Error)?;
                    state.extend(resolved.change);
                    numbers[at] = Some(resolved.number);
                    Ok(resolved.number)
                }
                _ => Err(Unspliced::Malformed(Malformed("no such description"))),
            }
        };
        let spliced = self.writer.splice(payload, &end.to_bytes(), transaction.time, transaction.ordinal, number);
        let records = spliced.map_err(|error| match error {
            Unspliced::Malformed(error) => cut_short().because(error),
            Unspliced::Error(error) => error,
        })?;
        transaction.ordinal += u64::from(records);
        // Its part has ended: a row behind it begins another.
        (transaction.begun, transaction.spliced) = (false, true);
        Ok(if self.writer.len() >= PIECE - CUT { Flow::Hand } else { Flow::On })
    }
}

enum Unspliced {
    Malformed(Malformed),
    Error(Error),
}

impl From<Malformed> for Unspliced {
    fn from(error: Malformed) -> Self {
        Self::Malformed(error)
    }
}

fn cut_short() -> Error {
    Error::retry("the spool of a streamed transaction does not hold what was put into it")
        .hint("look at the disk of `data_dir`; nothing is lost, the server sends the transaction again")
}
