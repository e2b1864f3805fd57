//! A captured table: its columns, their types, its key.

use serde::{Deserialize, Serialize};

use crate::name::stream_part;

/// The shape of a table as one schema of the log describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// The source's configured name.
    pub source: String,
    /// PostgreSQL's schema, MySQL's database. Empty for messages.
    pub schema: String,
    /// The table's own name.
    pub name: String,
    /// What the rows of this stream are.
    #[serde(default)]
    pub kind: TableKind,
    /// In the order of the table.
    pub columns: Vec<Column>,
    /// Indexes into `columns`, in the key's own order. Empty: no key.
    pub key: Vec<usize>,
    /// The key is also what the database identifies old rows by. Under
    /// REPLICA IDENTITY FULL without a primary key there is none.
    #[serde(default)]
    pub full_identity: bool,
}

/// What the rows of a stream are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TableKind {
    /// A table's changes.
    #[default]
    Table,
    /// Logical messages of a source.
    Messages,
}

/// One column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// As the database has it.
    pub name: String,
    /// How it is carried.
    pub ty: Type,
    /// The database's own type, with its modifiers: `numeric(12,2)`.
    pub db_type: String,
    /// Whether the source allows NULL. In the log every column outside the
    /// key may be null, whatever this says.
    pub nullable: bool,
    /// attnum, or the column's position: tells a rename from a drop and add.
    pub id: i32,
}

/// How a value is carried in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Type {
    /// Avro boolean.
    Boolean,
    /// 32 bits.
    Int,
    /// 64 bits.
    Long,
    /// IEEE single.
    Float,
    /// IEEE double.
    Double,
    /// UTF-8; also all that has no type of its own here.
    String,
    /// Raw bytes.
    Bytes,
    /// Canonical text with logicalType uuid.
    Uuid,
    /// The database's text of a json value.
    Json,
    /// Unscaled, big-endian two's complement, any precision.
    Decimal {
        /// Digits in all.
        precision: u32,
        /// Digits after the point, at most `precision`.
        scale: u32,
    },
    /// Days since 1970-01-01; ±infinity is ± the greatest int.
    Date,
    /// Microseconds since midnight; 24:00:00 is 86_400_000_000.
    Time,
    /// Microseconds since 1970-01-01T00:00:00 without a zone; ±infinity is ± the greatest long.
    LocalTimestamp,
    /// Microseconds since 1970-01-01T00:00:00Z; ±infinity likewise.
    Timestamp,
    /// Elements may be null; nested as deep as the column is declared.
    Array(Box<Type>),
    /// Text to nullable text (hstore).
    Map,
    /// A composite.
    Record(Vec<Field>),
}

/// A field of a composite.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Field {
    /// As the database has it.
    pub name: String,
    /// How it is carried; may always be null.
    pub ty: Type,
    /// The database's own type.
    pub db_type: String,
}

impl Table {
    /// `<source>.<schema>.<table>`, each part percent-encoded; messages have
    /// two parts, so no table can meet them.
    pub fn stream(&self) -> String {
        match self.kind {
            TableKind::Table => {
                format!("{}.{}.{}", self.source, stream_part(&self.schema), stream_part(&self.name))
            }
            TableKind::Messages => format!("{}.{}", self.source, stream_part(&self.name)),
        }
    }

    /// Whether the column is part of the key, and so never null.
    pub fn in_key(&self, column: usize) -> bool {
        self.key.contains(&column)
    }

    /// The stream of a source's logical messages: `content` is the text where
    /// it is UTF-8, else `binary` has the bytes.
    pub fn messages(source: &str) -> Self {
        let column = |id, name: &str, ty, db_type: &str, nullable| Column {
            name: name.into(),
            ty,
            db_type: db_type.into(),
            nullable,
            id,
        };
        Self {
            source: source.into(),
            schema: String::new(),
            name: "messages".into(),
            kind: TableKind::Messages,
            columns: vec![
                column(1, "prefix", Type::String, "text", false),
                column(2, "content", Type::String, "text", true),
                column(3, "binary", Type::Bytes, "bytea", true),
                column(4, "transactional", Type::Boolean, "boolean", false),
            ],
            key: Vec::new(),
            full_identity: false,
        }
    }
}
