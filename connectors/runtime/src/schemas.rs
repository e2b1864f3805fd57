//! Numbers shapes for a log, and has the registry know them first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use connector::{Error, Resolved, Result, SchemaNumber, Schemas, Shape, Shapes, Table, key_schema, value_schema};
use storage::{EventLog, Log, StateChange};
use tokio::runtime::Handle;

/// The shapes of one log. A shape that compatibility forbids would be turned
/// back here, before a byte is written under it: the gate's place.
#[derive(Debug)]
pub struct SchemaBook {
    log: Log,
    registry: Arc<schema_registry::Store>,
    runtime: Handle,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// By the table's JSON: every difference counts.
    by_table: HashMap<String, Arc<Shape>>,
    last: SchemaNumber,
}

impl SchemaBook {
    /// Reads what the log's state holds. `runtime` drives the registry's
    /// answers; `resolve` must not be called on one of its threads.
    pub fn open(log: Log, registry: Arc<schema_registry::Store>, runtime: Handle) -> Result<Self> {
        let shapes = shapes_of(&log)?;
        let mut known = Known::default();
        for shape in shapes.iter() {
            known.last = known.last.max(shape.number);
            known.by_table.insert(fingerprint(&shape.table), shape.clone());
        }
        Ok(Self { log, registry, runtime, known: Mutex::new(known) })
    }

    fn register(&self, table: &Table) -> Result<(Option<u32>, u32)> {
        let stream = table.stream();
        let register = async |subject: String, text: String| {
            let failed = |error: schema_registry::Error| {
                Error::halt(format!("could not register the schema of {stream}")).because(error)
            };
            self.registry.register(&subject, &text).await.map(|registered| registered.id).map_err(failed)
        };
        self.runtime.block_on(async {
            let key = match key_schema(table) {
                Some(text) => Some(register(format!("{stream}.Key"), text).await?),
                None => None,
            };
            Ok((key, register(format!("{stream}.Value"), value_schema(table)).await?))
        })
    }
}

impl Schemas for SchemaBook {
    fn shapes(&self, stream: &str) -> Vec<(SchemaNumber, Table)> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut shapes: Vec<_> = known.by_table.values().filter(|shape| shape.table.stream() == stream).collect();
        shapes.sort_by_key(|shape| std::cmp::Reverse(shape.number));
        shapes.into_iter().map(|shape| (shape.number, shape.table.clone())).collect()
    }

    fn resolve(&self, table: &Table) -> Result<Resolved> {
        let fingerprint = fingerprint(table);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let shape = match known.by_table.get(&fingerprint) {
            Some(shape) => shape.clone(),
            None => {
                let (key_id, value_id) = self.register(table)?;
                known.last += 1;
                let shape = Arc::new(Shape::new(known.last, table.clone(), key_id, value_id));
                known.by_table.insert(fingerprint, shape.clone());
                shape
            }
        };
        let key = Shape::state_key(shape.number);
        // A number that was given out need not have reached the log: the
        // source may have failed before its batch was appended.
        let change = self.log.state().get(key.as_bytes()).is_none().then(|| StateChange {
            key: key.into_bytes().into(),
            value: Some(serde_json::to_vec(&*shape).expect("a shape serialises").into()),
        });
        Ok(Resolved { number: shape.number, change })
    }
}

/// The shapes that a log's state holds now.
pub(crate) fn shapes_of(log: &Log) -> Result<Shapes> {
    let state = log.state();
    let entries = state.prefix(Shape::STATE_PREFIX.as_bytes());
    Shapes::from_state(entries).map_err(|error| {
        Error::halt("could not read the schemas in the log's state")
            .because(error)
            .hint("the log may be of a newer version: start that version again")
    })
}

fn fingerprint(table: &Table) -> String {
    serde_json::to_string(table).expect("a table serialises")
}
