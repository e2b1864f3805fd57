//! Where sources register: here, or at a registry elsewhere.

use std::sync::Arc;

use crate::client::Client;
use crate::content::NewSchema;
use crate::error::{Code, Error, Refusal, Result};
use crate::registry::{SchemaId, Shown};
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
