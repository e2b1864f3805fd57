//! What is asked of a registry elsewhere that is only looked at.

use reqwest::Method;
use serde_json::{Value, json};

use super::Client;
use crate::content::NewSchema;
use crate::error::{Error, Result};
use crate::registrar::Told;
use crate::registry::SchemaId;

/// Never a schema: a registry that takes requests to register says so, and
/// keeps nothing.
const NO_SCHEMA: &str = "{\"type\":\"highwater.check\"}";
const NO_SUBJECT: &str = "highwater-check";

impl Client {
    /// The subjects that begin so. Asked once: who looks wants to know now.
    pub async fn subjects(&self, prefix: &str) -> Result<Vec<String>> {
        let url = self.path(&["subjects"], &[("subjectPrefix", prefix)]);
        let answer = self.once(Method::GET, url, None).await;
        let all: Vec<String> = self.read(answer?)?;
        // Not every registry knows the parameter.
        Ok(all.into_iter().filter(|subject| subject.starts_with(prefix)).collect())
    }

    /// Whether schemas may be registered: asks with one that is none. The
    /// error is why not.
    pub async fn may_register(&self) -> Result<()> {
        let body = json!(NewSchema::avro(NO_SCHEMA)).to_string();
        let url = self.path(&["subjects", NO_SUBJECT, "versions"], &[]);
        match self.once(Method::POST, url, Some(body)).await {
            // 42205: nobody may, now.
            Err(Error::Answered { status: 400 | 422, code, .. }) if code != 42205 => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err(self.unusable("it took a schema that is none")),
        }
    }

    /// What an id stands for.
    pub async fn by_id(&self, id: SchemaId) -> Result<Option<String>> {
        let answer = self.ask_if(&["schemas", "ids", &id.to_string()], &[]).await?;
        Ok(answer.and_then(|answer| answer["schema"].as_str().map(str::to_owned)))
    }

    /// A subject's last version, and its schema.
    pub async fn latest(&self, subject: &str) -> Result<Option<(u32, String)>> {
        let answer = self.ask_if(&["subjects", subject, "versions", "latest"], &[]).await?;
        let read = |answer: Value| {
            let version = u32::try_from(answer["version"].as_u64()?).ok()?;
            Some((version, answer["schema"].as_str()?.to_owned()))
        };
        Ok(answer.and_then(read))
    }

    /// What is said about a subject's last version.
    pub(crate) async fn told(&self, subject: &str) -> Result<Option<Told>> {
        let answer = self.ask_if(&["subjects", subject, "versions", "latest"], &[]).await?;
        Ok(answer.map(|answer| {
            let version = answer["version"].as_u64().and_then(|version| u32::try_from(version).ok()).unwrap_or(0);
            Told::new(version, answer.get("metadata"))
        }))
    }

    /// Whether a schema is a version of a subject.
    pub async fn holds(&self, subject: &str, text: &str) -> Result<bool> {
        let body = json!(NewSchema::avro(text));
        match self.ask(Method::POST, &["subjects", subject], &[], Some(body)).await {
            Ok(_) => Ok(true),
            Err(Error::Answered { status: 404, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
