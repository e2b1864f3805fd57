//! Numbers shapes for a log, and has the registry know them first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use connector::{Error, Resolved, Result, SchemaNumber, Schemas, Shape, Shapes, Table, key_schema, value_schema};
use schema_registry::Registrar;
use storage::{EventLog, Log, StateChange};
use tokio::runtime::Handle;

/// The shapes of one log. A shape that compatibility forbids would be turned
/// back here, before a byte is written under it: the gate's place.
#[derive(Debug)]
pub struct SchemaBook {
    log: Log,
    registry: Registrar,
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
    pub fn open(log: Log, registry: Registrar, runtime: Handle) -> Result<Self> {
        let shapes = shapes_of(&log)?;
        let mut known = Known::default();
        for shape in shapes.iter() {
            known.last = known.last.max(shape.number);
            known.by_table.insert(fingerprint(&shape.table), shape.clone());
        }
        Ok(Self { log, registry, runtime, known: Mutex::new(known) })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self, table: &Table) -> Result<(Option<u32>, u32)> {
        let stream = table.stream();
        let register = async |subject: String, text: String| {
            self.registry.register(&subject, &text).await.map_err(|error| failed(&stream, error))
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
        let known = self.known().by_table.get(&fingerprint).cloned();
        let shape = match known {
            Some(shape) => shape,
            None => {
                // Without the lock: a registry that is away must not hold up known tables.
                let (key_id, value_id) = self.register(table)?;
                let mut known = self.known();
                let Known { by_table, last } = &mut *known;
                let make = || {
                    *last += 1;
                    Arc::new(Shape::new(*last, table.clone(), key_id, value_id))
                };
                by_table.entry(fingerprint).or_insert_with(make).clone()
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

/// A registry that is away for a while holds up a new shape, not the known
/// ones: those are in the log's state, and are not asked for again.
fn failed(stream: &str, error: schema_registry::Error) -> Error {
    use schema_registry::Error as Registry;
    let message = format!("could not register the schema of {stream}");
    match &error {
        Registry::Unreachable { .. } | Registry::Answered { status: 429 | 500.., .. } => Error::retry(message)
            .because(error)
            .hint("look at the registry of `[registry] url`; tables whose schemas are known need it no more"),
        Registry::Answered { status: 401 | 403, .. } => {
            Error::halt(message).because(error).hint("check `user`, `password` or `token` in `[registry]`")
        }
        Registry::Answered { status: 409, .. } => Error::halt(message)
            .because(error)
            .hint("the registry's compatibility level forbids the table's new shape: change the level, or the table"),
        _ => Error::halt(message).because(error),
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
