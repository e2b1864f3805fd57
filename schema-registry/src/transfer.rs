//! A registry as lines of JSON, out and in again with all ids kept.

use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::content::{NewSchema, Reference};
use crate::error::{Code, Error, Refusal, Result};
use crate::registry::{Config, Found, Mode, Registry, SchemaId, Shown};
use crate::store::Store;
use crate::subject::{Prefix, Subject};

/// Schemas that are imported at once.
const AT_ONCE: usize = 256;

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Entry {
    /// A version, in the form in which `GET /schemas` has it.
    Schema(Box<SchemaEntry>),
    /// Settings of a subject or context, or (empty) of all.
    Config {
        /// Whose.
        scope: String,
        /// Which.
        config: Config,
    },
    /// The mode of the same.
    Mode {
        /// Whose.
        scope: String,
        /// Which.
        mode: Mode,
    },
}

/// A version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SchemaEntry {
    /// Under which subject.
    pub subject: String,
    /// Its number there.
    pub version: u32,
    /// Its schema's id.
    pub id: SchemaId,
    /// Its language; none is Avro.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema_type: Option<String>,
    /// What it uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub references: Option<Vec<Reference>>,
    /// Tags and properties.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Value>,
    /// Rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule_set: Option<Value>,
    /// The text.
    pub schema: String,
    /// Softly.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleted: bool,
}

/// How much came in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// Versions.
    pub schemas: usize,
    /// Levels and modes.
    pub settings: usize,
}

impl Entry {
    /// If it is one.
    pub fn schema(&self) -> Option<&SchemaEntry> {
        match self {
            Entry::Schema(entry) => Some(entry),
            _ => None,
        }
    }

    /// Lines of JSON, or one array of it, as `GET /schemas` gives.
    pub fn parse(text: &str) -> Result<Vec<Self>, String> {
        let text = text.trim();
        if text.starts_with('[') {
            return serde_json::from_str(text).map_err(|error| format!("it is no list of versions: {error}"));
        }
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        lines
            .map(|(i, line)| {
                serde_json::from_str(line).map_err(|_| format!("line {} is no entry of a registry", i + 1))
            })
            .collect()
    }
}

impl SchemaEntry {
    pub(crate) fn request(&self) -> NewSchema {
        NewSchema {
            schema: Some(self.schema.clone()),
            schema_type: self.schema_type.clone(),
            references: self.references.clone(),
            metadata: self.metadata.clone(),
            rule_set: self.rule_set.clone(),
            version: i32::try_from(self.version).ok(),
            id: i32::try_from(self.id).ok(),
        }
    }

    fn new(found: &Found) -> Self {
        let content = &found.content;
        Self {
            subject: found.subject.as_str().into(),
            version: found.version.version,
            id: found.version.id,
            schema_type: None,
            references: (!content.references.is_empty()).then(|| content.references.to_vec()),
            metadata: content.metadata.as_deref().cloned(),
            rule_set: content.rule_set.as_deref().cloned(),
            schema: content.text.to_string(),
            deleted: found.version.deleted,
        }
    }
}

impl Registry {
    /// Everything, schemas in order of their ids.
    pub fn export(&self) -> Vec<Entry> {
        let mut found = self.everything(&Prefix::new(":*:"), Shown::All, false);
        found.sort_by_key(|found| found.version.id);
        let schemas = found.iter().map(|found| Entry::Schema(Box::new(SchemaEntry::new(found))));
        let configs =
            self.configs().map(|(scope, config)| Entry::Config { scope: scope.into(), config: config.clone() });
        let modes = self.modes().map(|(scope, mode)| Entry::Mode { scope: scope.into(), mode });
        schemas.chain(configs).chain(modes).collect()
    }
}

impl Store {
    /// Takes entries in, ids and versions as they are. What is there already
    /// stays; may be repeated.
    pub async fn import_all(&self, entries: &[Entry]) -> Result<Imported> {
        let mut imported = Imported::default();
        let mut schemas: Vec<&SchemaEntry> = entries.iter().filter_map(Entry::schema).collect();
        while !schemas.is_empty() {
            let mut later = Vec::new();
            let mut last = None;
            let importing = schemas.iter().map(|entry| async move {
                let subject = Subject::parse(&entry.subject)?;
                Ok::<_, Error>((*entry, self.import(subject, entry.request()).await))
            });
            // Many at once, for they share a sync.
            let mut importing = futures_util::stream::iter(importing).buffer_unordered(AT_ONCE);
            while let Some(done) = importing.next().await {
                match done? {
                    (_, Ok(_)) => imported.schemas += 1,
                    // What it refers to may come further down.
                    (entry, Err(Error::Refused(refusal))) if refusal.code == Code::InvalidSchema => {
                        later.push(entry);
                        last = Some((entry, refusal));
                    }
                    (entry, Err(Error::Refused(refusal))) => return Err(of(entry, refusal).into()),
                    (_, Err(error)) => return Err(error),
                }
            }
            drop(importing);
            if let Some((entry, refusal)) = last
                && later.len() == schemas.len()
            {
                return Err(of(entry, refusal).into());
            }
            schemas = later;
        }
        for entry in entries.iter().rev().filter_map(Entry::schema).filter(|entry| entry.deleted) {
            let which = crate::Which::Number(entry.version);
            self.delete_version(Subject::parse(&entry.subject)?, which, false).await?;
        }
        for entry in entries {
            match entry {
                Entry::Schema(_) => continue,
                Entry::Config { scope, config } => {
                    let set = self.set_config(whole(scope)?, config.request()).await?;
                    set.map_err(|why| Refusal::new(Code::InvalidLevel, format!("settings of {scope:?}: {why}")))?;
                }
                Entry::Mode { scope, mode } => {
                    self.set_mode(whole(scope)?, Some(mode.name().into()), true).await?;
                }
            }
            imported.settings += 1;
        }
        Ok(imported)
    }
}

fn whole(scope: &str) -> Result<Option<Subject>> {
    if scope.is_empty() { Ok(None) } else { Ok(Some(Subject::scope(scope)?)) }
}

fn of(entry: &SchemaEntry, refusal: Refusal) -> Refusal {
    let SchemaEntry { subject, version, id, .. } = entry;
    Refusal { message: format!("subject {subject}, version {version}, id {id}: {}", refusal.message), ..refusal }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Limits;

    #[tokio::test]
    async fn what_goes_out_comes_in_the_same() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = Store::open(one.path(), Limits::default()).await.unwrap();
        let subject = |name: &str| Subject::parse(name).unwrap();
        let inner = r#"{"type":"record","name":"In","fields":[]}"#;
        store.register_new(subject("gone"), NewSchema::avro("\"bytes\""), false).await.unwrap();
        store.delete_subject(subject("gone"), false).await.unwrap();
        store.delete_subject(subject("gone"), true).await.unwrap();
        store.register_new(subject("zz"), NewSchema::avro(inner), false).await.unwrap();
        let reference = Reference { name: "In".into(), subject: "zz".into(), version: 1 };
        let outer = NewSchema {
            references: Some(vec![reference]),
            metadata: Some(serde_json::json!({"properties": {"owner": "x"}})),
            ..NewSchema::avro(r#"{"type":"record","name":"Out","fields":[{"name":"i","type":"In"}]}"#)
        };
        store.register_new(subject("aa"), outer, false).await.unwrap();
        store.register_new(subject(":.c:aa"), NewSchema::avro("\"int\""), false).await.unwrap();
        store.register_new(subject(":.c:aa"), NewSchema::avro("\"long\""), false).await.unwrap();
        store.delete_version(subject(":.c:aa"), crate::Which::Number(1), false).await.unwrap();
        store.set_mode(Some(subject("aa")), Some("READONLY".into()), false).await.unwrap();
        let level = serde_json::json!({"compatibility": "FULL"}).as_object().unwrap().clone();
        store.set_config(None, level).await.unwrap().unwrap();
        let mut entries = store.read(Registry::export);
        let text: Vec<String> = entries.iter().map(|entry| serde_json::to_string(entry).unwrap()).collect();
        assert_eq!(Entry::parse(&text.join("\n")).unwrap(), entries);
        // In any order.
        entries.reverse();
        let other = Store::open(two.path(), Limits::default()).await.unwrap();
        assert_eq!(other.import_all(&entries).await.unwrap(), Imported { schemas: 4, settings: 2 });
        entries.reverse();
        assert_eq!(other.read(Registry::export), entries);
        other.close().await;
        store.close().await;
    }

    #[test]
    fn what_is_no_entry_is_told_by_its_line() {
        assert_eq!(
            Entry::parse("{\"scope\":\"\",\"mode\":\"IMPORT\"}\n{}").unwrap_err(),
            "line 2 is no entry of a registry"
        );
        let listed = r#"[{"subject":"a","version":1,"id":1,"schema":"\"int\""}]"#;
        assert_eq!(Entry::parse(listed).unwrap().len(), 1);
    }
}
