//! The registry on a log: an answer leaves only once it is durable.

use std::path::Path;
use std::sync::{PoisonError, RwLock};

use storage::{EventLog, Kind, Log, LogBatch, Micros, Options, StateChange};
use tokio::sync::Mutex;

use crate::error::Result;
use crate::registry::{Registered, Registry, SchemaId};
use crate::schema::AvroSchema;

/// A durable registry. The log's state is its content, so a start reads no
/// more than the newest segment.
#[derive(Debug)]
pub struct Store {
    log: Log,
    registry: RwLock<Registry>,
    /// One registration at a time: ids are dense, and the same schema gets one.
    registering: Mutex<()>,
}

impl Store {
    /// Opens the registry in a folder, or makes it.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let options = Options { segment_bytes: 16 << 20, ..Options::default() };
        let (log, _) = Log::open(folder, options)?;
        let mut registry = Registry::default();
        for (key, value) in log.state().iter() {
            registry.apply(&String::from_utf8_lossy(key), value)?;
        }
        // Whatever was superseded lives on in the state at the newest segment's head.
        log.retain_from(log.high_water());
        Ok(Self { log, registry: RwLock::new(registry), registering: Mutex::new(()) })
    }

    /// Registers a schema under a subject, or finds it there.
    pub async fn register(&self, subject: &str, text: &str) -> Result<Registered> {
        let schema = AvroSchema::parse(subject, text)?;
        let _one = self.registering.lock().await;
        let (registered, entries) = self.read(|registry| registry.plan(subject, &schema))?;
        if entries.is_empty() {
            return Ok(registered);
        }
        let state = entries
            .iter()
            .map(|(key, value)| StateChange { key: key.clone().into(), value: Some(value.clone().into()) })
            .collect();
        let batch = LogBatch {
            kind: Kind::Control,
            position: None,
            // An offset each, so that segments can be told apart.
            records: 1,
            event_time: Micros(0),
            payload: Default::default(),
            state,
            ends_transaction: true,
        };
        self.log.append(batch).await?.await?;
        let mut registry = self.registry.write().unwrap_or_else(PoisonError::into_inner);
        for (key, value) in &entries {
            registry.apply(key, value)?;
        }
        Ok(registered)
    }

    /// A schema's text.
    pub fn schema(&self, id: SchemaId) -> Option<std::sync::Arc<str>> {
        self.read(|registry| registry.schema(id).cloned())
    }

    /// Looks at the content.
    pub fn read<T>(&self, look: impl FnOnce(&Registry) -> T) -> T {
        look(&self.registry.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Ends it.
    pub async fn close(&self) {
        self.log.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ids_and_versions_survive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let a = store.register("a", "\"int\"").await.unwrap();
        let b = store.register("b", "\"long\"").await.unwrap();
        assert_eq!((a.id, b.id), (1, 2));
        store.close().await;
        drop(store);
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(store.register("a", "\"int\"").await.unwrap(), a);
        let c = store.register("a", "\"string\"").await.unwrap();
        assert_eq!((c.id, c.version), (3, 2));
        assert_eq!(store.schema(2).as_deref(), Some("\"long\""));
        store.close().await;
    }

    #[tokio::test]
    async fn a_schema_registered_by_many_at_once_gets_one_id() {
        let folder = tempfile::tempdir().unwrap();
        let store = std::sync::Arc::new(Store::open(folder.path()).unwrap());
        let tasks: Vec<_> = (0..16)
            .map(|i| {
                let store = store.clone();
                tokio::spawn(async move { store.register(&format!("s{}", i % 4), "\"int\"").await.unwrap().id })
            })
            .collect();
        for task in tasks {
            assert_eq!(task.await.unwrap(), 1);
        }
        store.close().await;
    }
}
