//! Which type a column has in the warehouse, and how its values get there.
//!
//! A built-in type is the same there: exact. A type of the source's own (enum,
//! domain, composite, of an extension) is used where the warehouse has one of
//! that name; else the column is the domain's base, or text as the source
//! prints it: widened. Such types are not made here: the log does not carry an
//! enum's labels or a domain's checks, and the stream does not tell when they
//! change; a value would then be refused that the source has.
//!
//! A column that somebody made is taken where it loses nothing: `held`.

use std::collections::HashMap;

use connector::{Result, Table, Type};
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;
use tokio_postgres::types::Type as PgType;

use crate::error::failed;

/// What a type of the warehouse does to the source's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Fit {
    /// The same type.
    Exact,
    /// Holds every value, and others too.
    Widened,
    /// Somebody made it so: takes a value as it is, or refuses it aloud.
    Narrowed,
}

/// How values go over the line: the types of staging columns and parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    Bool,
    Int2,
    Int4,
    Int8,
    Oid,
    Float4,
    Float8,
    Text,
    Bytea,
    Uuid,
    Json,
    Jsonb,
    Numeric,
    Date,
    Time,
    Timestamp,
    Timestamptz,
}

impl Wire {
    /// As `format_type` prints it.
    pub(crate) fn sql(self) -> &'static str {
        match self {
            Wire::Bool => "boolean",
            Wire::Int2 => "smallint",
            Wire::Int4 => "integer",
            Wire::Int8 => "bigint",
            Wire::Oid => "oid",
            Wire::Float4 => "real",
            Wire::Float8 => "double precision",
            Wire::Text => "text",
            Wire::Bytea => "bytea",
            Wire::Uuid => "uuid",
            Wire::Json => "json",
            Wire::Jsonb => "jsonb",
            Wire::Numeric => "numeric",
            Wire::Date => "date",
            Wire::Time => "time without time zone",
            Wire::Timestamp => "timestamp without time zone",
            Wire::Timestamptz => "timestamp with time zone",
        }
    }

    /// Of a parameter.
    pub(crate) fn parameter(self) -> PgType {
        match self {
            Wire::Bool => PgType::BOOL,
            Wire::Int2 => PgType::INT2,
            Wire::Int4 => PgType::INT4,
            Wire::Int8 => PgType::INT8,
            Wire::Oid => PgType::OID,
            Wire::Float4 => PgType::FLOAT4,
            Wire::Float8 => PgType::FLOAT8,
            Wire::Text => PgType::TEXT,
            Wire::Bytea => PgType::BYTEA,
            Wire::Uuid => PgType::UUID,
            Wire::Json => PgType::JSON,
            Wire::Jsonb => PgType::JSONB,
            Wire::Numeric => PgType::NUMERIC,
            Wire::Date => PgType::DATE,
            Wire::Time => PgType::TIME,
            Wire::Timestamp => PgType::TIMESTAMP,
            Wire::Timestamptz => PgType::TIMESTAMPTZ,
        }
    }

    fn of(ty: &Type, base: &str) -> Self {
        match (ty, base) {
            (Type::Boolean, _) => Wire::Bool,
            (Type::Int, "smallint") => Wire::Int2,
            (Type::Int, _) => Wire::Int4,
            (Type::Long, "oid") => Wire::Oid,
            (Type::Long, _) => Wire::Int8,
            (Type::Float, _) => Wire::Float4,
            (Type::Double, _) => Wire::Float8,
            (Type::Bytes, _) => Wire::Bytea,
            (Type::Uuid, _) => Wire::Uuid,
            (Type::Json, "jsonb") => Wire::Jsonb,
            (Type::Json, _) => Wire::Json,
            (Type::Decimal { .. }, _) => Wire::Numeric,
            (Type::Date, _) => Wire::Date,
            (Type::Time, _) => Wire::Time,
            (Type::LocalTimestamp, _) => Wire::Timestamp,
            (Type::Timestamp, _) => Wire::Timestamptz,
            (Type::String | Type::Array(_) | Type::Map | Type::Record(_), _) => Wire::Text,
        }
    }
}

/// A column's type in the warehouse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// As `format_type` prints it.
    pub(crate) sql: String,
    pub(crate) fit: Fit,
    pub(crate) wire: Wire,
}

/// Built-in types whose text means the same on every server.
const BUILT_IN: &[&str] = &[
    "boolean",
    "smallint",
    "integer",
    "bigint",
    "oid",
    "real",
    "double precision",
    "numeric",
    "money",
    "text",
    "character varying",
    "character",
    "bpchar",
    "\"char\"",
    "name",
    "bytea",
    "date",
    "time without time zone",
    "time with time zone",
    "timestamp without time zone",
    "timestamp with time zone",
    "interval",
    "uuid",
    "json",
    "jsonb",
    "jsonpath",
    "xml",
    "inet",
    "cidr",
    "macaddr",
    "macaddr8",
    "bit",
    "bit varying",
    "point",
    "line",
    "lseg",
    "box",
    "path",
    "polygon",
    "circle",
    "tsvector",
    "tsquery",
    "pg_lsn",
    "int4range",
    "int8range",
    "numrange",
    "tsrange",
    "tstzrange",
    "daterange",
    "int4multirange",
    "int8multirange",
    "nummultirange",
    "tsmultirange",
    "tstzmultirange",
    "datemultirange",
    "int2vector",
    "oidvector",
    "xid",
    "xid8",
    "cid",
    "tid",
    "refcursor",
    "pg_snapshot",
    "txid_snapshot",
];

/// A type's name without its modifier: `timestamp(3) without time zone` is
/// `timestamp without time zone`, `interval(3)` is `interval`.
pub(crate) fn base(db_type: &str) -> String {
    let db_type = if db_type.starts_with("interval") && !db_type.ends_with("[]") { "interval" } else { db_type };
    match (db_type.find('('), db_type.find(')')) {
        (Some(open), Some(close)) if open < close && !db_type.starts_with('"') => {
            format!("{}{}", &db_type[..open], &db_type[close + 1..])
        }
        _ => db_type.to_owned(),
    }
}

fn is_built_in(db_type: &str) -> bool {
    let element = db_type.trim_end_matches("[]");
    let base = base(element);
    BUILT_IN.contains(&base.as_str()) || base == "interval"
}

/// The types of the warehouse that bear names of the source's own.
#[derive(Debug, Default)]
pub(crate) struct OwnTypes {
    known: HashMap<String, bool>,
}

impl OwnTypes {
    /// Asks for those of a table that were not asked for yet.
    pub(crate) async fn learn(&mut self, client: &Client, table: &Table) -> Result<()> {
        for column in &table.columns {
            let name = column.db_type.trim_end_matches("[]");
            if is_built_in(name) || self.known.contains_key(name) {
                continue;
            }
            let row = client.query_one("SELECT to_regtype($1) IS NOT NULL", &[&base(name)]).await;
            let row = row.map_err(|error| failed(error, format!("could not ask for type {name}")))?;
            self.known.insert(name.to_owned(), row.get(0));
        }
        Ok(())
    }

    /// The type for a column.
    pub(crate) fn target(&self, ty: &Type, db_type: &str) -> Target {
        let base = base(db_type);
        let exact = |wire| Target { sql: db_type.to_owned(), fit: Fit::Exact, wire };
        if is_built_in(db_type) {
            return exact(Wire::of(ty, &base));
        }
        if self.known.get(db_type.trim_end_matches("[]")) == Some(&true) {
            return exact(Wire::of(ty, &base));
        }
        let sql = fallback(ty, db_type);
        let wire = Wire::of(ty, &sql);
        Target { sql, fit: Fit::Widened, wire }
    }
}

/// What holds the values of a type that the warehouse does not have.
fn fallback(ty: &Type, db_type: &str) -> String {
    match ty {
        Type::Decimal { precision, scale } => format!("numeric({precision},{scale})"),
        // Enums, composites and the like print as text within arrays too; what
        // prints without braces is text as a whole.
        Type::Array(_) if !db_type.ends_with("[]") => "text".into(),
        Type::Array(element) => {
            let mut element = &**element;
            while let Type::Array(inner) = element {
                element = inner;
            }
            format!("{}[]", fallback(element, db_type.trim_end_matches("[]")))
        }
        _ => Wire::of(ty, "").sql().to_owned(),
    }
}

/// What a column that somebody made of another type does to the target's values;
/// None: it could change one without a word, as `numeric(9,2)` rounds what has
/// three digits. `labels`: it is an enum.
pub(crate) fn held(target: &Target, there: &str, labels: bool) -> Option<Fit> {
    const INTEGERS: [(&str, i64); 4] = [("smallint", 5), ("integer", 10), ("oid", 10), ("bigint", 19)];
    if there == target.sql {
        return Some(target.fit);
    }
    let (from, to) = (base(&target.sql), base(there));
    let (had, has) = (modifiers(&target.sql), modifiers(there));
    let integer = |name: &str| INTEGERS.iter().find(|(of, _)| *of == name).map(|(_, digits)| *digits);
    // Digits before and behind the point; None: as many as there are.
    let digits = |name: &str, of: &[i64]| match (integer(name), of) {
        (Some(digits), _) => Some((digits, 0)),
        (None, [precision, scale]) => Some((precision - scale, *scale)),
        _ => None,
    };
    let holds = match (from.as_str(), to.as_str()) {
        _ if labels => return (from == "text").then_some(Fit::Narrowed),
        (_, "text") => true,
        (_, "character varying") => has.is_empty() || (from == to && had.first().is_some_and(|n| *n <= has[0])),
        ("smallint" | "integer" | "bigint", "smallint" | "integer" | "bigint") => {
            return Some(if integer(&from) < integer(&to) { Fit::Widened } else { Fit::Narrowed });
        }
        ("smallint" | "integer" | "oid" | "bigint" | "numeric", "numeric") => {
            match (digits(&from, &had), digits(&to, &has)) {
                (_, None) => true,
                (Some((whole, fraction)), Some((room, scale))) => whole <= room && fraction <= scale,
                (None, Some(_)) => false,
            }
        }
        ("oid", "bigint") | ("real", "double precision") => true,
        // Without a length these are of length 1.
        (_, "character" | "bit") => false,
        _ if from != to => false,
        _ => has.is_empty() || had.len() == has.len() && had.iter().zip(&has).all(|(had, has)| had <= has),
    };
    holds.then_some(Fit::Widened)
}

/// The numbers of a type's modifier: of `numeric(12,2)` 12 and 2.
fn modifiers(db_type: &str) -> Vec<i64> {
    let inner = db_type.split_once('(').and_then(|(_, rest)| rest.split_once(')'));
    inner.map_or(Vec::new(), |(inner, _)| inner.split(',').filter_map(|n| n.trim().parse().ok()).collect())
}

const NUMBERS: &[&str] = &["smallint", "integer", "bigint", "oid", "numeric"];

/// An expression of one type as another, by assignment where that is exact, by
/// its text where it is not.
pub(crate) fn cast(expression: &str, from: &str, to: &str) -> String {
    let (from, to_base) = (base(from), base(to));
    if from == to_base || (from == "text" && to_base == "character varying") {
        expression.to_owned()
    } else if from == "text" || (NUMBERS.contains(&from.as_str()) && NUMBERS.contains(&to_base.as_str())) {
        format!("{expression}::{to}")
    } else if to_base == "text" {
        format!("{expression}::text")
    } else {
        format!("{expression}::text::{to}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modifiers_are_no_part_of_a_types_name() {
        for (given, expected) in [
            ("numeric(12,2)", "numeric"),
            ("timestamp(3) with time zone", "timestamp with time zone"),
            ("interval day to second(3)", "interval"),
            ("numeric(5,1)[]", "numeric[]"),
            ("\"odd(1)\"", "\"odd(1)\""),
        ] {
            assert_eq!(base(given), expected);
        }
    }

    #[test]
    fn what_the_warehouse_lacks_is_its_base_or_text() {
        let mut types = OwnTypes::default();
        types.known.insert("hstore".into(), true);
        let array = |ty| Type::Array(Box::new(ty));
        for (ty, db_type, sql, wire) in [
            (Type::Int, "smallint", "smallint", Wire::Int2),
            (Type::Long, "oid", "oid", Wire::Oid),
            (Type::Decimal { precision: 12, scale: 2 }, "numeric(12,2)", "numeric(12,2)", Wire::Numeric),
            (Type::String, "numeric", "numeric", Wire::Text),
            (Type::String, "mood", "text", Wire::Text),
            (Type::Int, "positive", "integer", Wire::Int4),
            (Type::Decimal { precision: 9, scale: 2 }, "deep", "numeric(9,2)", Wire::Numeric),
            (Type::Map, "hstore", "hstore", Wire::Text),
            (Type::Map, "other.hstore", "text", Wire::Text),
            (Type::Record(Vec::new()), "pair", "text", Wire::Text),
            (array(Type::Record(Vec::new())), "pair[]", "text[]", Wire::Text),
            (array(array(Type::Int)), "integer[]", "integer[]", Wire::Text),
            (array(Type::Int), "positive[]", "integer[]", Wire::Text),
            (array(Type::Float), "vector(3)", "text", Wire::Text),
            (Type::Json, "jsonb", "jsonb", Wire::Jsonb),
        ] {
            let target = types.target(&ty, db_type);
            assert_eq!((target.sql.as_str(), target.wire), (sql, wire), "{db_type}");
            assert_eq!(target.fit == Fit::Exact, sql == db_type, "{db_type} as {sql}");
        }
    }

    #[test]
    fn a_column_that_somebody_made_is_taken_where_it_changes_no_value() {
        let check = |from: &str, there: &str, expected: Option<Fit>| {
            let target = Target { sql: from.into(), fit: Fit::Exact, wire: Wire::Text };
            assert_eq!(held(&target, there, there == "mood"), expected, "{from} in {there}");
        };
        let (exact, widened, narrowed) = (Some(Fit::Exact), Some(Fit::Widened), Some(Fit::Narrowed));
        for (from, there, expected) in [
            ("numeric(12,2)", "numeric(12,2)", exact),
            ("numeric(12,2)", "numeric", widened),
            ("numeric(12,2)", "numeric(14,3)", widened),
            ("numeric(12,2)", "numeric(13,4)", None),
            ("numeric(12,2)", "numeric(12,1)", None),
            ("numeric", "numeric(12,2)", None),
            ("numeric(12,2)", "integer", None),
            ("integer", "bigint", widened),
            ("bigint", "integer", narrowed),
            ("integer", "numeric(10,0)", widened),
            ("bigint", "numeric(10,0)", None),
            ("double precision", "real", None),
            ("real", "double precision", widened),
            ("character varying(5)", "character varying(8)", widened),
            ("text", "character varying(8)", None),
            ("character(5)", "character varying", widened),
            ("character varying(5)", "character(5)", None),
            ("timestamp(3) without time zone", "timestamp without time zone", widened),
            ("timestamp without time zone", "timestamp(3) without time zone", None),
            ("timestamp with time zone", "timestamp without time zone", None),
            ("timestamp without time zone", "date", None),
            ("json", "jsonb", None),
            ("integer[]", "text", widened),
            ("text", "mood", narrowed),
            ("text", "interval", None),
        ] {
            check(from, there, expected);
        }
    }

    #[test]
    fn casts_lose_nothing() {
        assert_eq!(cast("c", "numeric", "numeric(12,2)"), "c");
        assert_eq!(cast("c", "text", "character varying(5)"), "c");
        assert_eq!(cast("c", "text", "inet"), "c::inet");
        assert_eq!(cast("c", "integer", "bigint"), "c::bigint");
        assert_eq!(cast("c", "real", "numeric"), "c::text::numeric");
        assert_eq!(cast("c", "integer", "text"), "c::text");
    }
}
