//! What rows of a table must be, beyond their types.

use figment::value::Value;

use crate::section::Section;

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
