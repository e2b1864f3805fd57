//! Subjects, versions and ids, in memory and pure: a change is worked out
//! first, made durable by the store, then applied.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::schema::AvroSchema;

/// An id of a schema over all subjects; from 1, dense, never reused.
pub type SchemaId = u32;

/// A version of a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// From 1, never reused in its subject.
    pub version: u32,
    /// Its schema.
    pub id: SchemaId,
}

/// What a registration came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registered {
    /// The schema's id.
    pub id: SchemaId,
    /// Its version in the subject.
    pub version: u32,
}

/// Something to be made durable: a key and its value as JSON.
pub(crate) type Entry = (String, Vec<u8>);

/// The registry's content.
#[derive(Debug, Default)]
pub struct Registry {
    schemas: BTreeMap<SchemaId, Arc<str>>,
    ids: HashMap<Arc<str>, SchemaId>,
    subjects: BTreeMap<String, Vec<Version>>,
}

const SCHEMA: &str = "id/";
const SUBJECT: &str = "subject/";

impl Registry {
    /// What registering would do: the answer, and what must be durable first.
    /// The same schema again gives the same id and version, and nothing to write.
    pub(crate) fn plan(&self, subject: &str, schema: &AvroSchema) -> Result<(Registered, Vec<Entry>)> {
        let versions = self.subjects.get(subject).map(Vec::as_slice).unwrap_or_default();
        let known = self.ids.get(schema.text()).copied();
        if let Some(found) = versions.iter().find(|v| Some(v.id) == known) {
            return Ok((Registered { id: found.id, version: found.version }, Vec::new()));
        }
        let mut entries = Vec::with_capacity(2);
        let id = match known {
            Some(id) => id,
            None => {
                let last = self.schemas.last_key_value().map_or(0, |(id, _)| *id);
                let id = last.checked_add(1).filter(|id| i32::try_from(*id).is_ok()).ok_or(Error::IdsUsedUp)?;
                entries.push((format!("{SCHEMA}{id:010}"), json(schema.text())));
                id
            }
        };
        let version = versions.last().map_or(1, |v| v.version + 1);
        entries.push((format!("{SUBJECT}{version:010}/{subject}"), json(&Version { version, id })));
        Ok((Registered { id, version }, entries))
    }

    /// Applies what is durable; also how a log's state is read back.
    pub(crate) fn apply(&mut self, key: &str, value: &[u8]) -> Result<()> {
        let broken = |source| Error::Entry { key: key.into(), source };
        if let Some(id) = key.strip_prefix(SCHEMA).and_then(|id| id.parse().ok()) {
            let text: Arc<str> = serde_json::from_slice::<String>(value).map_err(broken)?.into();
            self.schemas.insert(id, text.clone());
            self.ids.insert(text, id);
        } else if let Some((_, subject)) = key.strip_prefix(SUBJECT).and_then(|rest| rest.split_once('/')) {
            let version: Version = serde_json::from_slice(value).map_err(broken)?;
            let versions = self.subjects.entry(subject.into()).or_default();
            versions.push(version);
            versions.sort_by_key(|v| v.version);
        }
        Ok(())
    }

    /// A schema's text.
    pub fn schema(&self, id: SchemaId) -> Option<&Arc<str>> {
        self.schemas.get(&id)
    }

    /// A subject's versions, oldest first.
    pub fn versions(&self, subject: &str) -> &[Version] {
        self.subjects.get(subject).map(Vec::as_slice).unwrap_or_default()
    }

    /// All subjects.
    pub fn subjects(&self) -> impl Iterator<Item = &str> {
        self.subjects.keys().map(String::as_str)
    }
}

fn json(value: &(impl Serialize + ?Sized)) -> Vec<u8> {
    serde_json::to_vec(value).expect("text and numbers serialise")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn register(registry: &mut Registry, subject: &str, text: &str) -> (u32, u32) {
        let schema = AvroSchema::parse(subject, text).unwrap();
        let (registered, entries) = registry.plan(subject, &schema).unwrap();
        for (key, value) in entries {
            registry.apply(&key, &value).unwrap();
        }
        (registered.id, registered.version)
    }

    #[test]
    fn a_schema_has_one_id_over_all_subjects_and_a_version_in_each() {
        let mut registry = Registry::default();
        assert_eq!(register(&mut registry, "a", "\"int\""), (1, 1));
        assert_eq!(register(&mut registry, "a", "\"int\""), (1, 1));
        assert_eq!(register(&mut registry, "a", "\"long\""), (2, 2));
        assert_eq!(register(&mut registry, "b/with/slashes", "\"long\""), (2, 1));
        assert_eq!(register(&mut registry, "a", "\"int\""), (1, 1));
        assert_eq!(registry.versions("a").len(), 2);
        assert_eq!(registry.subjects().collect::<Vec<_>>(), ["a", "b/with/slashes"]);
    }
}
