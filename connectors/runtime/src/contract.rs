//! What rows must be beyond their types, compiled once a shape.
//!
//! A check walks a row's Avro body up to the last column that has a rule, and
//! borrows what it compares: nothing is allocated for a row. A shape without
//! rules has no check, and its rows are not looked at.

mod registered;

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use config::{Contract, Must};
use connector::{
    Column, Error, Malformed, Op, Reader, Result, Table, TableKind, Type, days_from_civil, decimal_from_text,
    decimal_to_i128,
};
use regex_automata::meta::Regex;

pub(crate) use registered::{Registered, Wrong};

/// By schema and table.
type ByTable = Arc<dyn Fn(&str, &str) -> Option<Contract> + Send + Sync>;

/// The contracts of a source's tables.
#[derive(Clone)]
pub struct Contracts {
    of: ByTable,
    any: bool,
    /// Streams whose contract was found to fit.
    seen: Arc<Mutex<HashSet<String>>>,
    /// Those that stand in the registry.
    registered: Arc<Registered>,
}

impl fmt::Debug for Contracts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contracts").field("any", &self.any).finish()
    }
}

/// A rule that does not fit its table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfitting {
    /// File, line and key.
    pub place: String,
    /// What is wrong with it.
    pub what: String,
    /// Its column is not there.
    pub no_column: bool,
}

impl Contracts {
    /// By schema and table; `any`: whether there is one at all.
    pub fn new(any: bool, of: impl Fn(&str, &str) -> Option<Contract> + Send + Sync + 'static) -> Self {
        Self { of: Arc::new(of), any, seen: Arc::default(), registered: Arc::default() }
    }

    /// None at all.
    pub fn none() -> Self {
        Self::new(false, |_, _| None)
    }

    /// Whether the configuration has none.
    fn is_empty(&self) -> bool {
        !self.any
    }

    /// Whether no table has one, here or in the registry.
    pub(crate) fn bind_nobody(&self) -> bool {
        !self.any && self.registered.is_empty()
    }

    /// Those that stand in the registry.
    pub(crate) fn registered(&self) -> &Registered {
        &self.registered
    }

    fn of(&self, table: &Table) -> Option<Contract> {
        let contract = (table.kind == TableKind::Table).then(|| (self.of)(&table.schema, &table.name)).flatten();
        contract.filter(|contract| !contract.rules.is_empty())
    }

    /// The check of a shape; None: it has no rules. Rules that do not fit it
    /// are left out, but for those that nothing can fulfil.
    pub(crate) fn check(&self, table: &Table) -> Option<Check> {
        let mut contract = self.of(table).unwrap_or_default();
        if table.kind == TableKind::Table {
            contract.rules.extend(self.registered.rules(&table.stream()));
        }
        (!contract.rules.is_empty()).then(|| Check::compile(&contract, table).0)
    }

    /// What of a table's contract does not fit it.
    pub fn unfitting(&self, table: &Table) -> Vec<Unfitting> {
        self.of(table).map(|contract| Check::compile(&contract, table).1).unwrap_or_default()
    }

    /// A contract must fit when its table is first seen. What an ALTER makes of
    /// it later is told, and stops nothing: rows that lack what is required
    /// break it.
    pub(crate) fn fit(&self, table: &Table) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let unfitting = self.unfitting(table);
        let first = self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(table.stream());
        let Some(Unfitting { place, what, .. }) = unfitting.into_iter().next() else { return Ok(()) };
        if !first {
            tracing::warn!(place, what, "a rule of a contract fits its table no more");
            return Ok(());
        }
        Err(Error::halt(format!("{place}: {what}"))
            .hint("change the contract in the configuration; `highwater check` tells all that does not fit"))
    }
}

/// A contract over one shape.
pub(crate) struct Check {
    columns: Vec<Checked>,
    rules: Vec<String>,
}

/// A column up to the last with a rule.
struct Checked {
    ty: Type,
    in_key: bool,
    /// Rules that null, or not being sent, breaks.
    required: Option<usize>,
    key: Option<usize>,
    tests: Vec<(usize, Test)>,
}

enum Test {
    Long(i64, i64),
    Double(f64, f64),
    Decimal(i128, i128),
    /// Numbers of any length, as text.
    Number(Option<String>, Option<String>),
    Match(Regex),
    Longs(Vec<i64>),
    Decimals(Vec<i128>),
    Texts(Vec<String>),
    Truth(bool),
    /// What nothing fulfils: a required column that is not there.
    Never,
}

impl Check {
    fn compile(contract: &Contract, table: &Table) -> (Self, Vec<Unfitting>) {
        let mut columns: Vec<Checked> = (0..table.columns.len())
            .map(|i| Checked {
                ty: table.columns[i].ty.clone(),
                in_key: table.in_key(i),
                required: None,
                key: None,
                tests: Vec::new(),
            })
            .collect();
        let (mut rules, mut unfitting) = (Vec::new(), Vec::new());
        for rule in &contract.rules {
            let number = rules.len();
            let at = table.columns.iter().position(|column| column.name == rule.column);
            let no_column = at.is_none();
            let mut unfit = |what| unfitting.push(Unfitting { place: rule.place.clone(), what, no_column });
            let Some(at) = at else {
                unfit(format!("{}.{} has no column {:?} that is captured", table.schema, table.name, rule.column));
                if matches!(rule.must, Must::BePresent | Must::BeKey)
                    && let Some(first) = columns.first_mut()
                {
                    first.tests.push((number, Test::Never));
                    rules.push(format!("column {:?} is required and not there", rule.column));
                }
                continue;
            };
            let column = &table.columns[at];
            let words = match &rule.must {
                Must::BePresent => {
                    columns[at].required = Some(number);
                    "is null".to_owned()
                }
                Must::BeKey => {
                    columns[at].key = Some(number);
                    "is null or not told, and part of the key".to_owned()
                }
                Must::Range { min, max } => match range(column, min.as_deref(), max.as_deref()) {
                    Ok(test) => {
                        columns[at].tests.push((number, test));
                        match (min, max) {
                            (Some(min), Some(max)) => format!("is not between {min} and {max}"),
                            (Some(min), None) => format!("is less than {min}"),
                            (_, max) => format!("is greater than {}", max.as_deref().unwrap_or_default()),
                        }
                    }
                    Err(what) => {
                        unfit(what);
                        continue;
                    }
                },
                Must::Match(pattern) => {
                    if !matches!(column.ty, Type::String | Type::Uuid | Type::Json) {
                        unfit(format!("a pattern is for text, and the column is {}", column.db_type));
                        continue;
                    }
                    match Regex::new(pattern) {
                        Ok(regex) => columns[at].tests.push((number, Test::Match(regex))),
                        Err(error) => {
                            unfit(format!("{pattern:?} is no regular expression: {error}"));
                            continue;
                        }
                    }
                    format!("does not match {pattern:?}")
                }
                Must::BeOneOf(values) => match one_of(column, values) {
                    Ok(test) => {
                        columns[at].tests.push((number, test));
                        "is not one of the allowed values".to_owned()
                    }
                    Err(what) => {
                        unfit(what);
                        continue;
                    }
                },
            };
            rules.push(format!("column {:?} {words}", rule.column));
        }
        let has_rule = |c: &Checked| c.required.is_some() || c.key.is_some() || !c.tests.is_empty();
        let last = columns.iter().rposition(has_rule).map_or(0, |last| last + 1);
        columns.truncate(last);
        (Self { columns, rules }, unfitting)
    }

    /// The first rule that a row breaks; what was not sent breaks only the key.
    pub(crate) fn broken(&self, op: Op, value: &[u8], absent: Option<&[u8]>) -> Result<Option<&str>, Malformed> {
        if !matches!(op, Op::Read | Op::Insert | Op::Update) {
            return Ok(None);
        }
        let mut reader = Reader::new(value);
        let is_absent =
            |i: usize| absent.is_some_and(|bits| bits.get(i / 8).is_some_and(|byte| byte & (1 << (i % 8)) != 0));
        for (i, column) in self.columns.iter().enumerate() {
            let rule = |rule: usize| Ok(self.rules.get(rule).map(String::as_str));
            if is_absent(i) {
                reader.skip_nullable(&column.ty)?;
                if let Some(key) = column.key {
                    return rule(key);
                }
                continue;
            }
            if !column.in_key && !reader.present()? {
                if let Some(broken) = column.key.or(column.required) {
                    return rule(broken);
                }
                if let Some((broken, _)) = column.tests.iter().find(|(_, test)| matches!(test, Test::Never)) {
                    return rule(*broken);
                }
                continue;
            }
            if column.tests.is_empty() {
                reader.skip(&column.ty)?;
                continue;
            }
            let value = Value::read(&mut reader, &column.ty)?;
            for (number, test) in &column.tests {
                if !test.passes(&value) {
                    return rule(*number);
                }
            }
        }
        Ok(None)
    }
}

/// A value, borrowed.
enum Value<'a> {
    Long(i64),
    Double(f64),
    Decimal(&'a [u8]),
    Text(&'a [u8]),
    Truth(bool),
    Other,
}

impl<'a> Value<'a> {
    fn read(reader: &mut Reader<'a>, ty: &Type) -> Result<Self, Malformed> {
        Ok(match ty {
            Type::Boolean => Value::Truth(reader.boolean()?),
            Type::Int | Type::Long | Type::Date | Type::Time | Type::LocalTimestamp | Type::Timestamp => {
                Value::Long(reader.long()?)
            }
            Type::Float => Value::Double(reader.float()?.into()),
            Type::Double => Value::Double(reader.double()?),
            Type::Decimal { .. } => Value::Decimal(reader.bytes()?),
            Type::String | Type::Uuid | Type::Json => Value::Text(reader.bytes()?),
            other => {
                reader.skip(other)?;
                Value::Other
            }
        })
    }
}

impl Test {
    fn passes(&self, value: &Value<'_>) -> bool {
        match (self, value) {
            (Test::Long(min, max), Value::Long(value)) => min <= value && value <= max,
            (Test::Longs(allowed), Value::Long(value)) => allowed.contains(value),
            // NaN is in no range.
            (Test::Double(min, max), Value::Double(value)) => min <= value && value <= max,
            (Test::Decimal(min, max), Value::Decimal(bytes)) => match decimal_to_i128(bytes) {
                Some(value) => *min <= value && value <= *max,
                None if bytes.first().is_some_and(|byte| byte & 0x80 != 0) => *min == i128::MIN,
                None => *max == i128::MAX,
            },
            (Test::Decimals(allowed), Value::Decimal(bytes)) => {
                decimal_to_i128(bytes).is_some_and(|value| allowed.contains(&value))
            }
            (Test::Number(min, max), Value::Text(text)) => {
                let least = |bound: &String| compare(text, bound.as_bytes()).is_some_and(Ordering::is_ge);
                let most = |bound: &String| compare(text, bound.as_bytes()).is_some_and(Ordering::is_le);
                min.as_ref().is_none_or(least) && max.as_ref().is_none_or(most)
            }
            (Test::Match(regex), Value::Text(text)) => regex.is_match(*text),
            (Test::Texts(allowed), Value::Text(text)) => allowed.iter().any(|value| value.as_bytes() == *text),
            (Test::Truth(allowed), Value::Truth(value)) => allowed == value,
            _ => false,
        }
    }
}

/// Compares decimal numbers of any length; None: one is none.
fn compare(a: &[u8], b: &[u8]) -> Option<Ordering> {
    let ((a_minus, a_whole, a_part), (b_minus, b_whole, b_part)) = (digits(a)?, digits(b)?);
    if a_minus != b_minus {
        return Some(if a_minus { Ordering::Less } else { Ordering::Greater });
    }
    let by_size = a_whole.len().cmp(&b_whole.len()).then_with(|| a_whole.cmp(b_whole));
    let size = by_size.then_with(|| a_part.cmp(b_part));
    Some(if a_minus { size.reverse() } else { size })
}

/// Whether it is below zero, its digits before the point and those behind it,
/// without zeros that mean nothing.
fn digits(text: &[u8]) -> Option<(bool, &[u8], &[u8])> {
    let (minus, text) = match text.split_first() {
        Some((b'-', rest)) => (true, rest),
        _ => (false, text),
    };
    let dot = text.iter().position(|&c| c == b'.');
    let (whole, part) = dot.map_or((text, &[][..]), |dot| (&text[..dot], &text[dot + 1..]));
    if text.is_empty() || !whole.iter().chain(part).all(u8::is_ascii_digit) {
        return None;
    }
    let first = whole.iter().position(|&c| c != b'0').unwrap_or(whole.len());
    let last = part.iter().rposition(|&c| c != b'0').map_or(0, |at| at + 1);
    let (whole, part) = (&whole[first..], &part[..last]);
    Some((minus && !(whole.is_empty() && part.is_empty()), whole, part))
}

fn range(column: &Column, min: Option<&str>, max: Option<&str>) -> Result<Test, String> {
    let bad = |bound: &str| format!("{bound:?} is no value of {}", column.db_type);
    let longs = |parse: &dyn Fn(&str) -> Option<i64>| -> Result<Test, String> {
        let bound = |bound: Option<&str>, open: i64| bound.map_or(Ok(open), |text| parse(text).ok_or(bad(text)));
        Ok(Test::Long(bound(min, i64::MIN)?, bound(max, i64::MAX)?))
    };
    match &column.ty {
        Type::Int | Type::Long => longs(&|text| text.parse().ok()),
        Type::Date => longs(&date),
        Type::Time => longs(&clock),
        Type::Timestamp | Type::LocalTimestamp => longs(&timestamp),
        Type::Float | Type::Double => {
            let bound = |bound: Option<&str>, open: f64| bound.map_or(Ok(open), |t| t.parse().map_err(|_| bad(t)));
            Ok(Test::Double(bound(min, f64::NEG_INFINITY)?, bound(max, f64::INFINITY)?))
        }
        Type::Decimal { scale, .. } => {
            let bound =
                |bound: Option<&str>, open: i128| bound.map_or(Ok(open), |t| decimal(t, *scale).ok_or_else(|| bad(t)));
            Ok(Test::Decimal(bound(min, i128::MIN)?, bound(max, i128::MAX)?))
        }
        Type::String if column.db_type.starts_with("numeric") || column.db_type == "money" => {
            for bound in [min, max].into_iter().flatten() {
                compare(bound.as_bytes(), b"0").ok_or_else(|| bad(bound))?;
            }
            Ok(Test::Number(min.map(str::to_owned), max.map(str::to_owned)))
        }
        _ => Err(format!("a range is for numbers, dates and times, and the column is {}", column.db_type)),
    }
}

fn one_of(column: &Column, values: &[String]) -> Result<Test, String> {
    let bad = |value: &str| format!("{value:?} is no value of {}", column.db_type);
    match &column.ty {
        Type::Int | Type::Long => {
            let values = values.iter().map(|value| value.parse().map_err(|_| bad(value)));
            values.collect::<Result<_, _>>().map(Test::Longs)
        }
        Type::Date => {
            let values = values.iter().map(|value| date(value).ok_or_else(|| bad(value)));
            values.collect::<Result<_, _>>().map(Test::Longs)
        }
        Type::Decimal { scale, .. } => {
            let values = values.iter().map(|value| decimal(value, *scale).ok_or_else(|| bad(value)));
            values.collect::<Result<_, _>>().map(Test::Decimals)
        }
        Type::String | Type::Uuid => Ok(Test::Texts(values.to_vec())),
        Type::Boolean => match values {
            [value] => value.parse().map(Test::Truth).map_err(|_| bad(value)),
            _ => Err("a boolean is `true` or `false` anyway: allow one of them".into()),
        },
        _ => Err(format!("values can be listed for numbers, texts, dates and booleans, not for {}", column.db_type)),
    }
}

fn decimal(text: &str, scale: u32) -> Option<i128> {
    let mut bytes = Vec::new();
    decimal_from_text(&mut bytes, text.as_bytes(), scale).ok()?;
    decimal_to_i128(Reader::new(&bytes).bytes().ok()?)
}

fn date(text: &str) -> Option<i64> {
    let mut parts = text.splitn(3, '-').map(str::parse::<u32>);
    let (year, month, day) = (parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?);
    let real = (1..=12).contains(&month) && (1..=31).contains(&day);
    real.then(|| days_from_civil(year.into(), month, day))
}

fn clock(text: &str) -> Option<i64> {
    let (text, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut parts = text.splitn(3, ':').map(str::parse::<u32>);
    let (hours, minutes) = (parts.next()?.ok()?, parts.next()?.ok()?);
    let seconds = parts.next().map_or(Some(0), Result::ok)?;
    let micros = match fraction {
        "" => 0,
        fraction => format!("{fraction:0<6}").get(..6)?.parse::<u32>().ok()?,
    };
    let real = hours <= 24 && minutes < 60 && seconds < 60;
    real.then(|| {
        ((i64::from(hours) * 60 + i64::from(minutes)) * 60 + i64::from(seconds)) * 1_000_000 + i64::from(micros)
    })
}

fn timestamp(text: &str) -> Option<i64> {
    let text = text.strip_suffix('Z').unwrap_or(text);
    let (day, time) = text.split_once(['T', ' ']).unwrap_or((text, "00:00"));
    Some(date(day)? * 86_400_000_000 + clock(time)?)
}

#[cfg(test)]
mod tests;
