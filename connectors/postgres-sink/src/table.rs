//! A table of the warehouse as `_highwater.tables` knows it.

use connector::{Column, Shape, Table};
use serde::{Deserialize, Serialize};
use tokio_postgres::Row;

use crate::sql::{qualified, quote};

/// A table that the sink writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mirror {
    pub(crate) stream: String,
    pub(crate) schema: String,
    pub(crate) name: String,
    /// The log's number of the shape it has.
    pub(crate) shape: u32,
    pub(crate) columns: Vec<MirrorColumn>,
    /// Names, in the key's order.
    pub(crate) key: Vec<String>,
    /// The source's reading that counts.
    pub(crate) generation: u64,
    /// The table in `_highwater` that notes what was seen since the reading began.
    pub(crate) seen: Option<String>,
}

/// A column of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MirrorColumn {
    /// The source's number.
    pub(crate) id: i32,
    pub(crate) name: String,
    /// Its type here.
    #[serde(rename = "type")]
    pub(crate) ty: String,
    /// The source's type.
    pub(crate) source_type: String,
    pub(crate) fit: crate::types::Fit,
    /// Dropped at the source, kept here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) dropped: bool,
}

impl Mirror {
    /// Columns of `_highwater.tables`, in the order of `from_row`.
    pub(crate) const COLUMNS: &'static str =
        "stream, schema_name, table_name, shape, columns::text, key_columns, generation, seen";
    /// How many they are.
    pub(crate) const FIELDS: usize = 8;

    pub(crate) fn from_row(row: &Row) -> Result<Self, serde_json::Error> {
        Ok(Self {
            stream: row.get(0),
            schema: row.get(1),
            name: row.get(2),
            shape: row.get::<_, i64>(3) as u32,
            columns: serde_json::from_str(row.get(4))?,
            key: row.get(5),
            generation: row.get::<_, i64>(6) as u64,
            seen: row.get(7),
        })
    }

    /// For SQL.
    pub(crate) fn quoted(&self) -> String {
        qualified(&self.schema, &self.name)
    }

    /// The column here for each column of the shape that the table has.
    pub(crate) fn columns_of(&self, shape: &Shape) -> Option<Vec<&MirrorColumn>> {
        shape.table.columns.iter().map(|column| self.column_of(column)).collect()
    }

    /// By the source's number, whatever it is called by now.
    fn column_of(&self, column: &Column) -> Option<&MirrorColumn> {
        let mut of_number = self.columns.iter().filter(|here| here.id == column.id);
        let named = || self.columns.iter().find(|here| !here.dropped && here.name == column.name);
        of_number.clone().find(|here| !here.dropped).or_else(named).or_else(|| of_number.next())
    }

    /// Whether rows of an older shape go into the table as it is: a history that
    /// was moved back takes them again.
    pub(crate) fn takes_older(&self, shape: &Shape) -> bool {
        let fits = |column: &Column| self.column_of(column).is_some_and(|here| here.source_type == column.db_type);
        self.shape > shape.number && shape.table.columns.iter().all(fits)
    }

    /// The key's names and types.
    pub(crate) fn key_types(&self) -> Vec<(&str, &str)> {
        let ty = |name: &str| self.columns.iter().find(|column| column.name == *name).map_or("", |c| c.ty.as_str());
        self.key.iter().map(|name| (name.as_str(), ty(name))).collect()
    }

    /// The key's names for SQL, each after `prefix`.
    pub(crate) fn key_list(&self, prefix: &str) -> String {
        let names: Vec<String> = self.key.iter().map(|name| format!("{prefix}{}", quote(name))).collect();
        names.join(", ")
    }
}

/// Where a table of the source goes.
pub(crate) fn place(table: &Table, schema: Option<&str>) -> (String, String) {
    (schema.unwrap_or(&table.schema).to_owned(), table.name.clone())
}
