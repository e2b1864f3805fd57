//! Where sources register: here, or at a registry elsewhere.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use crate::client::Client;
use crate::content::NewSchema;
use crate::error::{Code, Error, Refusal, Result};
use crate::registry::{SchemaId, Shown, Which};
use crate::store::Store;
use crate::subject::Subject;

/// Gives ids to schemas of our own making.
#[derive(Clone, Debug)]
pub enum Registrar {
    /// Our own registry.
    Own(Arc<Store>),
    /// Another one: ids are its own.
    Elsewhere(Arc<Client>),
}

/// Whether a schema may be a subject's next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Check {
    /// The level that decided; None: nothing was compared.
    pub level: Option<String>,
    /// The version that it does not fit.
    pub version: Option<u32>,
    /// All that forbids it, in sentences; empty: it may.
    pub violations: Vec<String>,
}

/// What is said about a version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Its number.
    pub version: u32,
    /// The texts among its metadata's properties.
    pub properties: BTreeMap<String, String>,
}

impl Told {
    pub(crate) fn new(version: u32, metadata: Option<&Value>) -> Self {
        let properties = metadata.and_then(|metadata| metadata.get("properties")).and_then(Value::as_object);
        let texts = properties
            .into_iter()
            .flatten()
            .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())));
        Self { version, properties: texts.collect() }
    }
}

impl Registrar {
    /// A schema's id, registered if it was not. May be repeated. Our own
    /// registry takes it whatever the subject's level; one elsewhere decides.
    pub async fn register(&self, subject: &str, text: &str) -> Result<SchemaId> {
        match self {
            Registrar::Own(store) => Ok(store.register(subject, text).await?.id),
            Registrar::Elsewhere(client) => client.register(subject, &NewSchema::avro(text)).await,
        }
    }

    /// Whether a schema is a version of the subject, or could be its next at
    /// the subject's level. Changes nothing.
    pub async fn check(&self, subject: &str, text: &str) -> Result<Check> {
        let new = NewSchema::avro(text);
        let messages = match self {
            Registrar::Own(store) => {
                let subject = Subject::parse(subject)?;
                match store.lookup(subject.clone(), new.clone(), false, Shown::Live).await {
                    Ok(_) => return Ok(Check::default()),
                    Err(Error::Refused(Refusal {
                        code: Code::SubjectNotFound | Code::SchemaNotFound | Code::SubjectSoftDeleted,
                        ..
                    })) => {}
                    Err(error) => return Err(error),
                }
                store.compare(subject, None, new, false).await?.messages
            }
            Registrar::Elsewhere(client) => match client.is_version(subject, &new).await? {
                true => return Ok(Check::default()),
                false => client.compare(subject, &new).await?,
            },
        };
        Ok(Check::from_messages(messages))
    }

    /// What is said about a subject's last version; None: there is none.
    pub async fn last(&self, subject: &str) -> Result<Option<Told>> {
        match self {
            Registrar::Own(store) => {
                let subject = Subject::parse(subject)?;
                let found = store.read(|registry| registry.version(&subject, Which::Latest, Shown::Live)).ok();
                Ok(found.map(|found| Told::new(found.version.version, found.content.metadata.as_deref())))
            }
            Registrar::Elsewhere(client) => client.told(subject).await,
        }
    }

    /// Grows with every change; None: it has to be asked.
    pub fn changes(&self) -> Option<u64> {
        match self {
            Registrar::Own(store) => Some(store.read(crate::Registry::changes)),
            Registrar::Elsewhere(_) => None,
        }
    }

    /// Why it cannot be used, as far as its last answer tells.
    pub fn trouble(&self) -> Option<String> {
        match self {
            Registrar::Own(_) => None,
            Registrar::Elsewhere(client) => client.standing().trouble.map(|trouble| trouble.error),
        }
    }
}

impl Check {
    /// From the messages of a comparison: violations, and what surrounds them.
    fn from_messages(messages: Vec<String>) -> Self {
        let mut check = Self::default();
        for message in messages {
            if let Some(rest) = message.strip_prefix("{oldSchemaVersion: ") {
                check.version = rest.trim_end_matches('}').parse().ok();
            } else if message.starts_with("{validateFields: ") {
                check.level = between(&message, "compatibility: '", "'").map(str::to_owned);
            } else if message.starts_with("{oldSchema: ") {
            } else if message.starts_with("{errorType:") {
                let told = between(&message, "description:'", "', additionalInfo:").map(str::to_owned);
                check.violations.push(told.unwrap_or(message));
            } else {
                check.violations.push(message);
            }
        }
        check
    }
}

fn between<'a>(text: &'a str, before: &str, behind: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    rest.split_once(behind).map(|(inside, _)| inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_become_sentences() {
        let messages = [
            "{errorType:'TYPE_MISMATCH', description:'The type (path '/fields/1/type') of a field in the new schema does not match with the old schema', additionalInfo:'x'}",
            "{oldSchemaVersion: 3}",
            "{oldSchema: '{\"type\":\"int\"}'}",
            "{validateFields: 'false', compatibility: 'BACKWARD'}",
        ];
        let check = Check::from_messages(messages.map(str::to_owned).to_vec());
        assert_eq!((check.version, check.level.as_deref()), (Some(3), Some("BACKWARD")));
        let told = "The type (path '/fields/1/type') of a field in the new schema does not match with the old schema";
        assert_eq!(check.violations, [told]);
    }
}
