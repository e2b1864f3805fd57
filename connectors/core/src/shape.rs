//! A schema as the log knows it: by a small number of the log's own.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::schema::{key_schema, value_schema};
use crate::table::Table;

/// The log's own number of a schema; never reused.
pub type SchemaNumber = u32;

/// One table under one schema, with everything to read its rows: the log
/// explains itself even if the registry is replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// The log's own number.
    pub number: SchemaNumber,
    /// The registry's id of the key's schema.
    pub key_id: Option<u32>,
    /// The registry's id of the value's schema.
    pub value_id: u32,
    /// Columns and key.
    pub table: Table,
    /// The Avro schema that rows were written under, as text.
    pub value: String,
    /// That of keys.
    pub key: Option<String>,
}

impl Shape {
    /// The state key that shapes stand under.
    pub const STATE_PREFIX: &'static str = "schema/";

    /// A new one; the ids come from the registry.
    pub fn new(number: SchemaNumber, table: Table, key_id: Option<u32>, value_id: u32) -> Self {
        let (value, key) = (value_schema(&table), key_schema(&table));
        Self { number, key_id, value_id, table, value, key }
    }

    /// Where it stands in the log's state.
    pub fn state_key(number: SchemaNumber) -> String {
        format!("{}{number:010}", Self::STATE_PREFIX)
    }
}

/// All shapes of a log.
#[derive(Clone, Debug, Default)]
pub struct Shapes {
    by_number: HashMap<SchemaNumber, Arc<Shape>>,
}

impl Shapes {
    /// From state entries; those of other keys are passed over.
    pub fn from_state<'a>(entries: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> Result<Self, serde_json::Error> {
        let mut shapes = Self::default();
        for (key, value) in entries {
            if key.starts_with(Shape::STATE_PREFIX.as_bytes()) {
                shapes.insert(serde_json::from_slice(value)?);
            }
        }
        Ok(shapes)
    }

    /// Adds one.
    pub fn insert(&mut self, shape: Shape) -> Arc<Shape> {
        let shape = Arc::new(shape);
        self.by_number.insert(shape.number, shape.clone());
        shape
    }

    /// By the log's number.
    pub fn get(&self, number: SchemaNumber) -> Option<&Arc<Shape>> {
        self.by_number.get(&number)
    }

    /// In no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Shape>> {
        self.by_number.values()
    }
}
