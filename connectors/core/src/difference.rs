//! What changed between two shapes of a table, in the words of whoever altered it.

use std::fmt;

use serde::Serialize;

use crate::table::{Column, Table, Type};

/// One thing that is not as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum Difference {
    /// A column more.
    Added {
        /// Its name.
        column: String,
        /// The database's type.
        db_type: String,
        /// Whether the source allows NULL.
        nullable: bool,
    },
    /// A column less.
    Dropped {
        /// Its name.
        column: String,
        /// The database's type.
        db_type: String,
    },
    /// The same column under another name.
    Renamed {
        /// As it was called.
        from: String,
        /// As it is called.
        to: String,
    },
    /// Holds all that it held, and more.
    Widened {
        /// Its name.
        column: String,
        /// The type it had.
        from: String,
        /// The type it has.
        to: String,
    },
    /// Holds less than it held.
    Narrowed {
        /// Its name.
        column: String,
        /// The type it had.
        from: String,
        /// The type it has.
        to: String,
    },
    /// Another type, neither wider nor narrower.
    Retyped {
        /// Its name.
        column: String,
        /// The type it had.
        from: String,
        /// The type it has.
        to: String,
    },
    /// The same type, carried in another way: `as` in the configuration.
    Carried {
        /// Its name.
        column: String,
    },
    /// May be NULL now.
    MadeNullable {
        /// Its name.
        column: String,
    },
    /// May not be NULL any more.
    MadeRequired {
        /// Its name.
        column: String,
    },
    /// Other columns make the key, or in another order.
    KeyChanged {
        /// The key's columns as they were, by their names now where they are left.
        from: Vec<String>,
        /// As they are.
        to: Vec<String>,
    },
    /// Whole old rows are sent, or no longer.
    IdentityChanged {
        /// REPLICA IDENTITY FULL now.
        full: bool,
    },
    /// The same columns in another order.
    Reordered,
}

impl Difference {
    /// All of them. A column is the same if its number is: a rename is told
    /// from a drop and an add.
    pub fn between(old: &Table, new: &Table) -> Vec<Self> {
        let mut out = Vec::new();
        let before = |column: &Column| old.columns.iter().find(|other| other.id == column.id);
        for column in &new.columns {
            match before(column) {
                Some(was) => of_column(was, column, &mut out),
                None => out.push(Self::Added {
                    column: column.name.clone(),
                    db_type: column.db_type.clone(),
                    nullable: column.nullable,
                }),
            }
        }
        for column in &old.columns {
            if !new.columns.iter().any(|other| other.id == column.id) {
                out.push(Self::Dropped { column: column.name.clone(), db_type: column.db_type.clone() });
            }
        }
        let ids = |table: &Table| -> Vec<i32> { table.key.iter().map(|&i| table.columns[i].id).collect() };
        if ids(old) != ids(new) {
            let now = |id: i32| new.columns.iter().find(|column| column.id == id);
            let name = |column: &Column| now(column.id).unwrap_or(column).name.clone();
            let names = |table: &Table| table.key.iter().map(|&i| name(&table.columns[i])).collect();
            out.push(Self::KeyChanged { from: names(old), to: names(new) });
        }
        if old.full_identity != new.full_identity {
            out.push(Self::IdentityChanged { full: new.full_identity });
        }
        let order = |table: &Table| table.columns.iter().map(|column| column.id).collect::<Vec<_>>();
        if out.is_empty() && order(old) != order(new) {
            out.push(Self::Reordered);
        }
        out
    }
}

fn of_column(was: &Column, column: &Column, out: &mut Vec<Difference>) {
    let name = || column.name.clone();
    if was.name != column.name {
        out.push(Difference::Renamed { from: was.name.clone(), to: name() });
    }
    if was.db_type != column.db_type {
        let (from, to) = (was.db_type.clone(), column.db_type.clone());
        let width = width(was).zip(self::width(column));
        let wider = holds(&column.ty, &was.ty) && width.is_none_or(|(was, is)| is >= was);
        let narrower = holds(&was.ty, &column.ty) && width.is_none_or(|(was, is)| is <= was);
        out.push(match (wider, narrower) {
            (true, false) => Difference::Widened { column: name(), from, to },
            (false, true) => Difference::Narrowed { column: name(), from, to },
            _ => Difference::Retyped { column: name(), from, to },
        });
    } else if was.ty != column.ty {
        out.push(Difference::Carried { column: name() });
    }
    match (was.nullable, column.nullable) {
        (false, true) => out.push(Difference::MadeNullable { column: name() }),
        (true, false) => out.push(Difference::MadeRequired { column: name() }),
        _ => {}
    }
}

/// Whether every value of `small` is one of `large`.
fn holds(large: &Type, small: &Type) -> bool {
    use Type::*;
    match (large, small) {
        (Decimal { precision: p, scale: s }, Decimal { precision: q, scale: t }) => s >= t && p - s >= q - t,
        (Array(large), Array(small)) => holds(large, small),
        (Long, Int) | (Double, Float | Int) | (Float, Int) => true,
        (large, small) => large == small,
    }
}

/// The number in `varchar(20)`, where more of it holds more; a type without
/// holds any.
fn width(column: &Column) -> Option<u64> {
    if column.ty != Type::String {
        // smallint and integer are carried alike.
        return match column.db_type.as_str() {
            "smallint" => Some(16),
            "integer" => Some(32),
            "bigint" => Some(64),
            _ => None,
        };
    }
    let inside = column.db_type.split_once('(').and_then(|(_, rest)| rest.split_once(')'));
    match inside {
        Some((number, _)) => number.parse().ok(),
        None if matches!(column.db_type.as_str(), "text" | "character varying") => Some(u64::MAX),
        None => None,
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Added { column, db_type, nullable } => {
                write!(f, "column {column:?} of type {db_type} was added")?;
                if *nullable { Ok(()) } else { f.write_str(", NOT NULL") }
            }
            Self::Dropped { column, db_type } => write!(f, "column {column:?} of type {db_type} was dropped"),
            Self::Renamed { from, to } => write!(f, "column {from:?} was renamed to {to:?}"),
            Self::Widened { column, from, to } => write!(f, "column {column:?} was widened from {from} to {to}"),
            Self::Narrowed { column, from, to } => write!(f, "column {column:?} was narrowed from {from} to {to}"),
            Self::Retyped { column, from, to } => write!(f, "column {column:?} was changed from {from} to {to}"),
            Self::Carried { column } => write!(f, "column {column:?} is carried in another way: `as` was changed"),
            Self::MadeNullable { column } => write!(f, "column {column:?} may be NULL now"),
            Self::MadeRequired { column } => write!(f, "column {column:?} may not be NULL any more"),
            Self::KeyChanged { from, to } => {
                write!(f, "the key was ({}) and is ({})", from.join(", "), to.join(", "))
            }
            Self::IdentityChanged { full: true } => f.write_str("REPLICA IDENTITY is FULL now"),
            Self::IdentityChanged { full: false } => f.write_str("REPLICA IDENTITY is FULL no more"),
            Self::Reordered => f.write_str("the columns stand in another order"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(columns: &[(i32, &str, Type, &str, bool)], key: &[usize]) -> Table {
        let columns = columns.iter().map(|(id, name, ty, db_type, nullable)| Column {
            name: (*name).into(),
            ty: ty.clone(),
            db_type: (*db_type).into(),
            nullable: *nullable,
            id: *id,
        });
        Table {
            source: "shop".into(),
            schema: "public".into(),
            name: "t".into(),
            kind: Default::default(),
            columns: columns.collect(),
            key: key.to_vec(),
            full_identity: false,
        }
    }

    #[test]
    fn each_change_has_its_word() {
        let old = table(
            &[
                (1, "id", Type::Int, "integer", false),
                (2, "a", Type::String, "character varying(10)", true),
                (3, "b", Type::Int, "integer", true),
                (4, "c", Type::Long, "bigint", false),
                (5, "d", Type::Decimal { precision: 10, scale: 2 }, "numeric(10,2)", true),
                (6, "e", Type::String, "text", true),
            ],
            &[0],
        );
        let new = table(
            &[
                (1, "id", Type::Long, "bigint", false),
                (2, "aa", Type::String, "text", true),
                (3, "b", Type::Int, "smallint", true),
                (4, "c", Type::Int, "integer", true),
                (5, "d", Type::String, "text", false),
                (7, "e", Type::String, "text", true),
            ],
            &[0, 3],
        );
        let told: Vec<String> = Difference::between(&old, &new).iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                r#"column "id" was widened from integer to bigint"#,
                r#"column "a" was renamed to "aa""#,
                r#"column "aa" was widened from character varying(10) to text"#,
                r#"column "b" was narrowed from integer to smallint"#,
                r#"column "c" was narrowed from bigint to integer"#,
                r#"column "c" may be NULL now"#,
                r#"column "d" was changed from numeric(10,2) to text"#,
                r#"column "d" may not be NULL any more"#,
                r#"column "e" of type text was added"#,
                r#"column "e" of type text was dropped"#,
                r#"the key was (id) and is (id, c)"#,
            ]
        );
        assert!(Difference::between(&old, &old).is_empty());
    }
}
