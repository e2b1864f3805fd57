//! From the buckets that differ to the rows, and from the rows to the columns.

use std::collections::HashMap;

use connector::Result;

use crate::pace::Progress;
use crate::side::{Failure, Hash, Side};
use crate::sums::{Sum, buckets, hashes, pieces, sums};
use crate::table::{Table, Which, literal, quote};

/// Rows of differing buckets that are held at once, of each side.
const HELD: u64 = 500_000;
/// Keys of one statement.
const KEYS: usize = 200;

/// How much is told.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Rows of a table that are told one by one.
    pub findings: usize,
    /// Keys that are kept to be mended.
    pub keys: usize,
    /// Values are told, and not only names of columns.
    pub values: bool,
}

/// What is wrong with a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The destination lacks it.
    Missing,
    /// The source does not have it.
    Extra,
    /// Both have it, with other values.
    Different,
}

/// A row that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub found: Found,
    /// The key's columns and values; empty where there is no key.
    pub key: Vec<(String, String)>,
    /// Of a row without a key: how often it is wrong.
    pub times: u64,
    /// The columns that differ. With values: as the source and as the destination has them.
    pub columns: Vec<(String, Option<[Option<String>; 2]>)>,
}

/// What a table came to.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Rows at the source.
    pub source_rows: u64,
    /// Rows at the destination.
    pub sink_rows: u64,
    /// How many the destination lacks.
    pub missing: u64,
    /// How many it has too many.
    pub extra: u64,
    /// How many have other values.
    pub different: u64,
    /// The first of them, one by one.
    pub findings: Vec<Finding>,
    /// The keys of all, if they are not too many.
    pub keys: Option<Vec<Vec<String>>>,
    /// It could not be compared, because of this.
    pub skipped: Option<String>,
}

impl Outcome {
    /// A table that was not compared.
    pub fn skipped(why: impl Into<String>) -> Self {
        Self { skipped: Some(why.into()), ..Self::default() }
    }

    /// Nothing is wrong with it.
    pub fn is_equal(&self) -> bool {
        self.skipped.is_none() && self.missing + self.extra + self.different == 0
    }
}

/// Compares a table, each side on its own session and both at once.
pub async fn compare(
    source: &mut Side,
    sink: &mut Side,
    table: &Table,
    hash: Hash,
    limits: Limits,
    progress: &Progress,
) -> Result<Outcome> {
    match compared(source, sink, table, hash, limits, progress).await {
        Ok(outcome) => Ok(outcome),
        Err(Failure::Changed) => Ok(Outcome::skipped(
            "it was rewritten, truncated or altered while it was compared: its rows of before are gone; verify again",
        )),
        Err(Failure::Error(error)) => Err(error),
    }
}

async fn compared(
    source: &mut Side,
    sink: &mut Side,
    table: &Table,
    hash: Hash,
    limits: Limits,
    progress: &Progress,
) -> Result<Outcome, Failure> {
    let count = buckets(table);
    let (there, here) =
        tokio::join!(sums(source, table, hash, count, progress), sums(sink, table, hash, count, progress));
    let (there, here) = (there?, here?);
    let rows = |sums: &[Sum]| sums.iter().map(|sum| sum.rows).sum();
    let mut outcome =
        Outcome { source_rows: rows(&there), sink_rows: rows(&here), keys: Some(Vec::new()), ..Outcome::default() };
    let mut wrong: Vec<usize> = (0..count).filter(|&bucket| there[bucket] != here[bucket]).collect();
    while !wrong.is_empty() {
        let full = outcome.findings.len() >= limits.findings && outcome.keys.is_none();
        let (mut group, mut held) = (Vec::new(), 0);
        while let Some(bucket) = wrong.last().copied().filter(|_| held < HELD) {
            wrong.pop();
            let (source, sink) = (there[bucket].rows, here[bucket].rows);
            if full && source.min(sink) == 0 {
                // All of it is wrong, and nothing more is told than how much.
                outcome.missing += source;
                outcome.extra += sink;
                continue;
            }
            held += source.max(sink);
            group.push(bucket);
        }
        if !group.is_empty() {
            let all = group.len() == count;
            let (there, here) = tokio::join!(
                images(source, table, hash, count, (!all).then_some(&group), limits.values),
                images(sink, table, hash, count, (!all).then_some(&group), limits.values)
            );
            settle(table, there?, here?, limits, &mut outcome);
        }
    }
    look_closely(source, sink, table, limits, &mut outcome).await?;
    Ok(outcome)
}

/// What is held of a row: how often, its hash, and its values where they are told.
struct Image {
    hash: i128,
    times: u64,
    values: Option<Vec<Option<String>>>,
}

/// By key; without one by the row's hash.
type Images = HashMap<Vec<String>, Image>;

/// The rows of some buckets.
async fn images(
    side: &mut Side,
    table: &Table,
    hash: Hash,
    count: usize,
    only: Option<&Vec<usize>>,
    values: bool,
) -> Result<Images, Failure> {
    let (key, row) = hashes(table, side.which, hash);
    let mut list = vec![row];
    list.extend(table.key.iter().map(|&i| table.text(side.which, i)));
    let bare = table.key.is_empty();
    if bare && values {
        list.extend((0..table.columns.len()).map(|i| table.text(side.which, i)));
    }
    let wanted = match only {
        Some(buckets) => {
            let list: Vec<String> = buckets.iter().map(usize::to_string).collect();
            format!(" AND ({key} & {})::int = ANY ('{{{}}}'::int[])", count - 1, list.join(","))
        }
        None => String::new(),
    };
    let mut images = Images::new();
    for piece in pieces(side, table.place(side.which)) {
        let sql = format!("SELECT {} FROM {}{wanted}", list.join(", "), piece.from);
        let answers = side.rows(&sql, piece.of).await?;
        let rows = answers.len() as u64;
        for answer in answers {
            let text = |i: usize| answer.get(i).map(str::to_owned);
            let own = text(0).unwrap_or_default();
            let hash: i128 = own.parse().map_err(|_| Failure::Changed)?;
            let key = match bare {
                true => vec![own],
                false => (1..=table.key.len()).map(|i| text(i).unwrap_or_default()).collect(),
            };
            let image = images.entry(key).or_insert_with(|| Image {
                hash: 0,
                times: 0,
                values: (bare && values).then(|| (1..=table.columns.len()).map(text).collect()),
            });
            image.hash += hash;
            image.times += 1;
        }
        side.pace.keep(rows).await;
    }
    Ok(images)
}

/// Tells what is missing, too many, different.
fn settle(table: &Table, there: Images, mut here: Images, limits: Limits, outcome: &mut Outcome) {
    let mut tell = |found: Found, key: Vec<String>, times: u64, values: Option<Vec<Option<String>>>| {
        match found {
            Found::Missing => outcome.missing += times,
            Found::Extra => outcome.extra += times,
            Found::Different => outcome.different += times,
        }
        let named = |key: &[String]| {
            let names = table.key.iter().map(|&i| table.columns[i].clone());
            names.zip(key.iter().cloned()).collect::<Vec<_>>()
        };
        if outcome.findings.len() < limits.findings {
            let columns = match values {
                Some(values) => table
                    .columns
                    .iter()
                    .zip(values)
                    .map(|(name, value)| {
                        let both = if found == Found::Missing { [value, None] } else { [None, value] };
                        (name.clone(), Some(both))
                    })
                    .collect(),
                None => Vec::new(),
            };
            outcome.findings.push(Finding { found, key: named(&key), times, columns });
        }
        match &mut outcome.keys {
            Some(keys) if !table.key.is_empty() && keys.len() < limits.keys => keys.push(key),
            keys => *keys = None,
        }
    };
    for (key, source) in there {
        match here.remove(&key) {
            None => tell(Found::Missing, key, source.times, source.values),
            Some(sink) if table.key.is_empty() => {
                let (source_times, sink_times) = (source.times, sink.times);
                if source_times > sink_times {
                    tell(Found::Missing, key, source_times - sink_times, source.values);
                } else if sink_times > source_times {
                    tell(Found::Extra, key, sink_times - source_times, sink.values);
                }
            }
            Some(sink) if (source.hash, source.times) != (sink.hash, sink.times) => {
                tell(Found::Different, key, 1, None);
            }
            Some(_) => {}
        }
    }
    for (key, sink) in here {
        tell(Found::Extra, key, sink.times, sink.values);
    }
}

/// Which columns differ, of the rows that are told one by one.
async fn look_closely(
    source: &mut Side,
    sink: &mut Side,
    table: &Table,
    limits: Limits,
    outcome: &mut Outcome,
) -> Result<(), Failure> {
    if table.key.is_empty() {
        return Ok(());
    }
    let key_of = |finding: &Finding| finding.key.iter().map(|(_, value)| value.clone()).collect::<Vec<_>>();
    let told = |finding: &Finding| limits.values || finding.found == Found::Different;
    let keys: Vec<Vec<String>> = outcome.findings.iter().filter(|f| told(f)).map(key_of).collect();
    let mut there = HashMap::new();
    let mut here = HashMap::new();
    for keys in keys.chunks(KEYS) {
        let (a, b) = tokio::join!(by_key(source, table, keys), by_key(sink, table, keys));
        there.extend(a?);
        here.extend(b?);
    }
    for finding in outcome.findings.iter_mut().filter(|finding| told(finding)) {
        let key = key_of(finding);
        let (a, b) = (there.get(&key), here.get(&key));
        for (i, name) in table.columns.iter().enumerate() {
            let value = |row: Option<&Vec<Option<String>>>| row.and_then(|row| row.get(i).cloned()).flatten();
            let both = [value(a), value(b)];
            if both[0] != both[1] {
                finding.columns.push((name.clone(), limits.values.then_some(both)));
            }
        }
    }
    Ok(())
}

/// Whole rows as text, by key.
async fn by_key(
    side: &mut Side,
    table: &Table,
    keys: &[Vec<String>],
) -> Result<HashMap<Vec<String>, Vec<Option<String>>>, Failure> {
    let which: Which = side.which;
    let place = table.place(which);
    let key: Vec<&(String, String)> = table.key.iter().filter_map(|&i| place.columns[i].as_ref()).collect();
    let names: Vec<String> = key.iter().map(|(name, _)| quote(name)).collect();
    let tuple = |values: &Vec<String>| {
        let typed: Vec<String> =
            values.iter().zip(&key).map(|(value, (_, ty))| format!("{}::{ty}", literal(value))).collect();
        format!("({})", typed.join(", "))
    };
    let list: Vec<String> = keys.iter().map(tuple).collect();
    let columns: Vec<String> = (0..table.columns.len()).map(|i| table.text(which, i)).collect();
    let sql = format!(
        "SELECT {} FROM {} WHERE ({}) IN ({})",
        columns.join(", "),
        place.quoted,
        names.join(", "),
        list.join(", ")
    );
    let mut rows = HashMap::new();
    for answer in side.rows(&sql, None).await? {
        let row: Vec<Option<String>> = (0..table.columns.len()).map(|i| answer.get(i).map(str::to_owned)).collect();
        let key = table.key.iter().map(|&i| row[i].clone().unwrap_or_default()).collect();
        rows.insert(key, row);
    }
    Ok(rows)
}
