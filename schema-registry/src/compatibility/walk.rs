//! Whether a reader's schema can read what a writer's schema wrote, and all
//! that stands in the way.
//!
//! Avro's resolution rules as Confluent reads them: names without namespaces,
//! the reader's aliases, promotions, defaults for what is missing; logical
//! types, docs, properties and orders are not looked at.
//! <https://avro.apache.org/docs/1.12.0/specification/#schema-resolution>
//!
//! Two walks over pairs of types. `report` goes everywhere and gathers. `takes`
//! only answers yes or no, for unions, where a branch that does not fit is no
//! fault while another does. A type may hold itself: a pair under way is taken
//! to fit, and if it does not in the end, what was taken on its account is
//! forgotten again. A "no" stays: it was found in spite of all that was granted.
//!
//! Every step costs one of a budget, so that no schema keeps a thread for long.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::time::Instant;

use super::violation::{Violation, ViolationKind};
use crate::avro::{Avro, Enum, Field, Kind, Named, NodeId, Record};

/// How much a comparison may cost.
#[derive(Debug)]
pub(crate) struct Budget {
    left: Cell<u64>,
    deadline: Option<Instant>,
}

/// A comparison would have cost too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exhausted;

/// Pairs looked at, at most: beyond a second's worth anywhere.
const STEPS: u64 = 100_000_000;
/// Types inside of types, at most: each costs stack.
const DEPTH: usize = 1_000;
/// Violations kept of one walk.
const KEPT: usize = 20_000;
/// A union with more branches is searched by name.
const FEW: usize = 8;

impl Budget {
    pub(crate) fn new(deadline: Option<Instant>) -> Self {
        Self { left: Cell::new(STEPS), deadline }
    }

    fn spend(&self, steps: usize) -> Result<(), Exhausted> {
        let before = self.left.get();
        let left = before.checked_sub(steps as u64).ok_or(Exhausted)?;
        self.left.set(left);
        // The clock is looked at now and then only.
        if before >> 12 != left >> 12 && self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(Exhausted);
        }
        Ok(())
    }
}

/// Adds what stands in the way to `out`.
pub(crate) fn read(
    reader: &Avro,
    writer: &Avro,
    sides: [&'static str; 2],
    budget: &Budget,
    out: &mut Vec<Violation>,
) -> Result<(), Exhausted> {
    let mut walk = Walk {
        reader,
        writer,
        sides,
        budget,
        out,
        path: Vec::new(),
        reported: HashSet::new(),
        granted: HashSet::new(),
        trail: Vec::new(),
        refused: HashSet::new(),
        branches: HashMap::new(),
        depth: 0,
    };
    walk.report(reader.root(), writer.root())
}

type Pair = (NodeId, NodeId);

struct Walk<'a> {
    reader: &'a Avro,
    writer: &'a Avro,
    sides: [&'static str; 2],
    budget: &'a Budget,
    out: &'a mut Vec<Violation>,
    path: Vec<Step>,
    /// Pairs whose violations are told, or are being told.
    reported: HashSet<Pair>,
    /// Pairs that fit, or are taken to while they are looked at.
    granted: HashSet<Pair>,
    /// `granted` in its order.
    trail: Vec<Pair>,
    refused: HashSet<Pair>,
    /// Of large reader unions: branches by simple name.
    branches: HashMap<NodeId, HashMap<&'a str, Vec<NodeId>>>,
    depth: usize,
}

#[derive(Clone, Copy)]
enum Step {
    Word(&'static str),
    Place(usize),
}

impl<'a> Walk<'a> {
    fn report(&mut self, reader: NodeId, writer: NodeId) -> Result<(), Exhausted> {
        self.budget.spend(1)?;
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(Exhausted);
        }
        let told = self.report_pair(reader, writer);
        self.depth -= 1;
        told
    }

    fn report_pair(&mut self, r: NodeId, w: NodeId) -> Result<(), Exhausted> {
        let (reader, writer) = (self.reader, self.writer);
        match (reader.kind(r), writer.kind(w)) {
            (Kind::Union(_), Kind::Union(branches)) => {
                for (i, &branch) in branches.iter().enumerate() {
                    if !self.takes(r, branch)? {
                        self.at(Step::Place(i), |walk| walk.missing_branch(branch));
                    }
                }
            }
            (_, Kind::Union(branches)) => {
                for (i, &branch) in branches.iter().enumerate() {
                    self.path.push(Step::Place(i));
                    self.report(r, branch)?;
                    self.path.pop();
                }
            }
            (Kind::Union(_), _) => {
                if !self.takes(r, w)? {
                    self.missing_branch(w);
                }
            }
            (Kind::Array(a), Kind::Array(b)) => self.below("items", *a, *b)?,
            (Kind::Map(a), Kind::Map(b)) => self.below("values", *a, *b)?,
            (Kind::Record(a), Kind::Record(b)) => {
                if !self.granted.contains(&(r, w)) && self.reported.insert((r, w)) {
                    self.name(&a.named, &b.named);
                    self.fields(a, b)?;
                }
            }
            (Kind::Enum(a), Kind::Enum(b)) => {
                self.name(&a.named, &b.named);
                let missing = missing_symbols(a, b, self.budget)?;
                if !missing.is_empty() {
                    let detail = format!("[{}]", missing.join(", "));
                    self.at(Step::Word("symbols"), |walk| walk.tell(ViolationKind::MissingEnumSymbols, detail));
                }
            }
            (Kind::Fixed(a), Kind::Fixed(b)) => {
                self.name(&a.named, &b.named);
                if a.size != b.size {
                    let detail = format!("expected: {}, found: {}", b.size, a.size);
                    self.at(Step::Word("size"), |walk| walk.tell(ViolationKind::FixedSizeMismatch, detail));
                }
            }
            (a, b) => {
                if !promotes(a, b) {
                    let (a, b) = (a.word().to_uppercase(), b.word().to_uppercase());
                    let detail = format!("reader type: {a} not compatible with writer type: {b}");
                    self.tell(ViolationKind::TypeMismatch, detail);
                }
            }
        }
        Ok(())
    }

    fn fields(&mut self, reader: &'a Record, writer: &'a Record) -> Result<(), Exhausted> {
        self.path.push(Step::Word("fields"));
        for (i, field) in reader.fields.iter().enumerate() {
            self.path.push(Step::Place(i));
            match written(field, i, writer) {
                Some(written) => self.below("type", field.ty, written.ty)?,
                None if field.default.is_some() => {}
                None => self.tell(ViolationKind::ReaderFieldMissingDefaultValue, field.name.to_string()),
            }
            self.path.pop();
        }
        self.path.pop();
        Ok(())
    }

    fn below(&mut self, word: &'static str, r: NodeId, w: NodeId) -> Result<(), Exhausted> {
        self.path.push(Step::Word(word));
        self.report(r, w)?;
        self.path.pop();
        Ok(())
    }

    fn name(&mut self, reader: &Named, writer: &Named) {
        if !same_name(reader, writer) {
            let detail = format!("expected: {}", writer.name.full());
            self.at(Step::Word("name"), |walk| walk.tell(ViolationKind::NameMismatch, detail));
        }
    }

    fn missing_branch(&mut self, w: NodeId) {
        let word = self.writer.kind(w).word().to_uppercase();
        self.tell(ViolationKind::MissingUnionBranch, format!("reader union lacking writer type: {word}"));
    }

    fn at(&mut self, step: Step, tell: impl FnOnce(&mut Self)) {
        self.path.push(step);
        tell(self);
        self.path.pop();
    }

    fn tell(&mut self, kind: ViolationKind, detail: String) {
        if self.out.len() >= KEPT {
            return;
        }
        let mut path = String::new();
        for step in &self.path {
            path.push('/');
            match step {
                Step::Word(word) => path.push_str(word),
                Step::Place(place) => path.push_str(&place.to_string()),
            }
        }
        if path.is_empty() {
            path.push('/');
        }
        self.out.push(Violation { kind, path, detail, sides: self.sides });
    }

    /// Whether the reader takes all that the writer may write.
    fn takes(&mut self, r: NodeId, w: NodeId) -> Result<bool, Exhausted> {
        self.budget.spend(1)?;
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(Exhausted);
        }
        let takes = self.takes_pair(r, w);
        self.depth -= 1;
        takes
    }

    fn takes_pair(&mut self, r: NodeId, w: NodeId) -> Result<bool, Exhausted> {
        let (reader, writer) = (self.reader, self.writer);
        Ok(match (reader.kind(r), writer.kind(w)) {
            (_, Kind::Union(branches)) => {
                for &branch in branches {
                    if !self.takes(r, branch)? {
                        return Ok(false);
                    }
                }
                true
            }
            (Kind::Union(branches), kind) => match kind.named() {
                Some(named) if branches.len() > FEW => {
                    let near = self.by_name(r, branches).get(&*named.name.simple).cloned().unwrap_or_default();
                    self.any(&near, w)?
                }
                _ => self.any(branches, w)?,
            },
            (Kind::Array(a), Kind::Array(b)) | (Kind::Map(a), Kind::Map(b)) => self.takes(*a, *b)?,
            (Kind::Record(a), Kind::Record(b)) => same_name(&a.named, &b.named) && self.takes_record((r, w), a, b)?,
            (Kind::Enum(a), Kind::Enum(b)) => {
                same_name(&a.named, &b.named) && missing_symbols(a, b, self.budget)?.is_empty()
            }
            (Kind::Fixed(a), Kind::Fixed(b)) => same_name(&a.named, &b.named) && a.size == b.size,
            (a, b) => promotes(a, b),
        })
    }

    fn any(&mut self, branches: &[NodeId], w: NodeId) -> Result<bool, Exhausted> {
        for &branch in branches {
            if self.takes(branch, w)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn takes_record(&mut self, pair: Pair, reader: &'a Record, writer: &'a Record) -> Result<bool, Exhausted> {
        if self.granted.contains(&pair) {
            return Ok(true);
        }
        if self.refused.contains(&pair) {
            return Ok(false);
        }
        let mark = self.trail.len();
        self.granted.insert(pair);
        self.trail.push(pair);
        for (i, field) in reader.fields.iter().enumerate() {
            let fits = match written(field, i, writer) {
                Some(written) => self.takes(field.ty, written.ty)?,
                None => field.default.is_some(),
            };
            if !fits {
                for granted in self.trail.drain(mark..) {
                    self.granted.remove(&granted);
                }
                self.refused.insert(pair);
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A large union's branches, under every simple name they answer to.
    fn by_name(&mut self, union: NodeId, branches: &[NodeId]) -> &HashMap<&'a str, Vec<NodeId>> {
        let reader = self.reader;
        self.branches.entry(union).or_insert_with(|| {
            let mut names: HashMap<&str, Vec<NodeId>> = HashMap::new();
            for &branch in branches {
                let Some(named) = reader.kind(branch).named() else { continue };
                for name in named.aliases.iter().chain([&named.name]) {
                    let near = names.entry(&name.simple).or_default();
                    if near.last() != Some(&branch) {
                        near.push(branch);
                    }
                }
            }
            names
        })
    }
}

/// The writer's field for a reader's: by its name, else by one of its aliases.
fn written<'a>(field: &Field, place: usize, writer: &'a Record) -> Option<&'a Field> {
    let named = writer.field(&field.name, place);
    named.or_else(|| field.aliases.iter().find_map(|alias| writer.field(alias, place)))
}

fn same_name(reader: &Named, writer: &Named) -> bool {
    reader.name.simple == writer.name.simple || reader.aliases.contains(&writer.name)
}

/// Symbols that the reader does not have and has no default for.
fn missing_symbols<'a>(reader: &Enum, writer: &'a Enum, budget: &Budget) -> Result<Vec<&'a str>, Exhausted> {
    budget.spend(reader.symbols.len() + writer.symbols.len())?;
    if reader.default.is_some() {
        return Ok(Vec::new());
    }
    let known: HashSet<&str> = reader.symbols.iter().map(|symbol| &**symbol).collect();
    Ok(writer.symbols.iter().map(|symbol| &**symbol).filter(|symbol| !known.contains(symbol)).collect())
}

/// Whether the reader's type can be made of the writer's.
fn promotes(reader: &Kind, writer: &Kind) -> bool {
    match (reader, writer) {
        (Kind::Long, Kind::Int)
        | (Kind::Float, Kind::Int | Kind::Long)
        | (Kind::Double, Kind::Int | Kind::Long | Kind::Float)
        | (Kind::String, Kind::Bytes)
        | (Kind::Bytes, Kind::String) => true,
        // Pairs of these are looked at elsewhere.
        (Kind::Record(_) | Kind::Enum(_) | Kind::Fixed(_) | Kind::Array(_) | Kind::Map(_) | Kind::Union(_), _) => false,
        (a, b) => std::mem::discriminant(a) == std::mem::discriminant(b),
    }
}
