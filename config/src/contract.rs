//! What rows of a table must be, beyond their types.

use std::collections::HashMap;

use figment::value::{Dict, Value};

use crate::fault::Fault;
use crate::section::{Faulty, Section};

/// The rules of a table, in no order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contract {
    /// What each demands.
    pub rules: Vec<Rule>,
}

/// One rule, for one column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Which column.
    pub column: String,
    /// What it must be.
    pub must: Must,
    /// Where it stands: file, line and key.
    pub place: String,
}

/// What a column must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Must {
    /// Not null.
    BePresent,
    /// Known and not null in every row: part of what tells rows apart.
    BeKey,
    /// Within bounds, both included.
    Range {
        /// The least.
        min: Option<String>,
        /// The greatest.
        max: Option<String>,
    },
    /// Text that a regular expression finds a match in.
    Match(String),
    /// One of these.
    BeOneOf(Vec<String>),
}

impl Contract {
    /// Rules that stand elsewhere than in the configuration, as JSON: a whole
    /// contract in the configuration's words, or what one column must be, in
    /// the same words without its name. `place` says where. Else all that is
    /// wrong with them.
    pub fn from_json(place: &str, column: Option<&str>, text: &str) -> Result<Self, Vec<String>> {
        let value: Value = serde_json::from_str(text).map_err(|error| vec![format!("{place}: is no JSON: {error}")])?;
        let mut faulty = Faulty { file: place.into(), lines: HashMap::new(), layered: false, faults: Vec::new() };
        let value = match (column, value) {
            (None, value) => Some(value),
            (Some(column), Value::Dict(tag, words)) => Some(Value::Dict(tag, of_column(column, words, &mut faulty))),
            (Some(_), _) => {
                faulty.add("", "must be an object, like {\"required\": true, \"range\": {\"min\": 0}}", None);
                None
            }
        };
        let contract = value.map(|value| Self::read(Section::new("", value, &mut faulty))).unwrap_or_default();
        let faults: Vec<String> = faulty.in_order().iter().map(Fault::to_string).collect();
        if faults.is_empty() { Ok(contract) } else { Err(faults) }
    }

    pub(crate) fn read(mut section: Section<'_>) -> Self {
        let mut rules = Vec::new();
        for (name, must) in [("required", Must::BePresent), ("key", Must::BeKey)] {
            let columns = section.list(if name == "key" { "key" } else { "required" }).unwrap_or_default();
            let place = section.place(name);
            rules.extend(columns.into_iter().map(|column| Rule { column, must: must.clone(), place: place.clone() }));
        }
        if let Some(mut ranges) = section.section("range") {
            for (column, value) in ranges.rest() {
                let path = format!("{}.{column}", ranges.path);
                let mut range = Section::new(&path, value, ranges.faulty);
                let (min, max) = (range.scalar("min"), range.scalar("max"));
                if min.is_none() && max.is_none() {
                    range.fault("min", "a range has `min`, `max`, or both", Some("{ min = 0, max = 1000 }"));
                }
                range.finish();
                rules.push(Rule { must: Must::Range { min, max }, place: ranges.place(&column), column });
            }
        }
        if let Some(mut patterns) = section.section("pattern") {
            for (column, value) in patterns.rest() {
                match value {
                    Value::String(_, pattern) => {
                        rules.push(Rule { must: Must::Match(pattern), place: patterns.place(&column), column });
                    }
                    _ => patterns.fault(&column, "must be a regular expression", Some("like \"^[A-Z]{3}$\"")),
                }
            }
        }
        if let Some(mut allowed) = section.section("allowed") {
            for (column, value) in allowed.rest() {
                let values = match value {
                    Value::Array(_, values) => values.iter().map(scalar_text).collect(),
                    _ => None,
                };
                match values {
                    Some(values) => {
                        rules.push(Rule { must: Must::BeOneOf(values), place: allowed.place(&column), column });
                    }
                    None => allowed.fault(&column, "must be a list of values", Some("like [\"new\", \"paid\"]")),
                }
            }
        }
        section.finish();
        Self { rules }
    }
}

/// A column's rules as a contract has them.
fn of_column(column: &str, words: Dict, faulty: &mut Faulty) -> Dict {
    let mut whole = Dict::new();
    for (word, value) in words {
        let value = match (word.as_str(), value) {
            ("required" | "key", Value::Bool(_, false)) => continue,
            ("required" | "key", Value::Bool(_, true)) => Value::from(vec![column]),
            ("required" | "key", _) => {
                faulty.add(&word, "must be true or false", None);
                continue;
            }
            ("range" | "pattern" | "allowed", value) => Value::from(Dict::from([(column.to_owned(), value)])),
            (_, value) => value,
        };
        whole.insert(word, value);
    }
    whole
}

/// Numbers, truths and texts as text.
pub(crate) fn scalar_text(value: &Value) -> Option<String> {
    match value {
        Value::String(_, text) => Some(text.clone()),
        Value::Bool(_, truth) => Some(truth.to_string()),
        Value::Num(_, number) => match (number.to_i128(), number.to_u128(), number.to_f64()) {
            (Some(whole), ..) => Some(whole.to_string()),
            (_, Some(whole), _) => Some(whole.to_string()),
            (.., Some(float)) => Some(float.to_string()),
            _ => None,
        },
        _ => None,
    }
}
