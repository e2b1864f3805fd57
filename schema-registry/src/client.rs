//! A registry elsewhere, over Confluent's REST API.

mod look;
mod standing;

pub use standing::{Standing, Trouble};

use std::path::PathBuf;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Map, Value, json};
use url::Url;

use crate::content::NewSchema;
use crate::error::{Error, Result};
use crate::registry::{Config, SchemaId};
use crate::transfer::{Entry, Imported, SchemaEntry};
use standing::Answers;

/// Where a registry is, and what it wants to see.
#[derive(Clone)]
pub struct Elsewhere {
    /// With a path, if its API is under one; without name and password.
    pub url: Url,
    /// Name and password.
    pub basic: Option<(String, String)>,
    /// Instead of them.
    pub bearer: Option<String>,
    /// Who signs its certificate; else the machine's roots.
    pub ca: Option<PathBuf>,
    /// For one answer.
    pub timeout: Duration,
}

/// Speaks to it. What fails on the line, or by 429 and 5xx, is tried a few times.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    at: Elsewhere,
    answers: Answers,
}

const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_millis(200);
/// Of an answer.
const MOST: u64 = 64 << 20;
const V1: &str = "application/vnd.schemaregistry.v1+json";

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("url", &self.at.url.as_str()).finish_non_exhaustive()
    }
}

impl Client {
    /// Prepares; nothing is asked yet.
    pub fn new(at: Elsewhere) -> Result<Self> {
        // An answer from elsewhere than configured would be somebody else's.
        let mut builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(at.timeout)
            .connect_timeout(at.timeout.min(Duration::from_secs(5)));
        if let Some(path) = &at.ca {
            let unusable =
                |why: &dyn std::fmt::Display| Error::Settings(format!("{} cannot be used: {why}", path.display()));
            let pem = std::fs::read(path).map_err(|error| unusable(&error))?;
            let roots = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| unusable(&error))?;
            builder = builder.tls_certs_only(roots);
        }
        let http = builder.build().map_err(|error| Error::Settings(format!("no HTTP client: {error}")))?;
        Ok(Self { http, at, answers: Answers::default() })
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        self.at.url.as_str()
    }

    /// How it stands, by what it last answered.
    pub fn standing(&self) -> Standing {
        self.answers.get()
    }

    /// A schema's id there, registered if it was not.
    pub async fn register(&self, subject: &str, new: &NewSchema) -> Result<SchemaId> {
        let body = json!(new);
        let answer = self.ask(Method::POST, &["subjects", subject, "versions"], &[], Some(body)).await?;
        let id = answer["id"].as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| self.unusable("it gave no id"))
    }

    /// All versions, softly deleted ones too, and the levels. Modes are left
    /// out: a registry that is copied is mostly read only just then.
    pub async fn export(&self) -> Result<Vec<Entry>> {
        let with_deleted = [("deleted", "true")];
        let subjects = self.ask(Method::GET, &["subjects"], &with_deleted, None).await?;
        let subjects: Vec<String> = self.read(subjects)?;
        let mut all = Vec::new();
        for subject in &subjects {
            let path = ["subjects", subject, "versions"];
            let live: Vec<u32> = self.read(self.ask_if(&path, &[]).await?.unwrap_or(json!([])))?;
            let numbers: Vec<u32> = self.read(self.ask(Method::GET, &path, &with_deleted, None).await?)?;
            for number in numbers {
                let path = ["subjects", subject, "versions", &number.to_string()];
                let version = self.ask(Method::GET, &path, &with_deleted, None).await?;
                let mut entry: SchemaEntry = self.read(version)?;
                entry.deleted = !live.contains(&number);
                all.push(Entry::Schema(Box::new(entry)));
            }
        }
        all.sort_by_key(|entry| match entry {
            Entry::Schema(entry) => entry.id,
            _ => 0,
        });
        let config = self.ask(Method::GET, &["config"], &[], None).await?;
        all.push(Entry::Config { scope: String::new(), config: self.read::<Config>(config)? });
        for subject in &subjects {
            if let Some(config) = self.ask_if(&["config", subject], &[]).await? {
                all.push(Entry::Config { scope: subject.clone(), config: self.read::<Config>(config)? });
            }
        }
        Ok(all)
    }

    /// Registers with ids and versions as they are: mode IMPORT while it lasts.
    pub async fn import(&self, entries: &[Entry]) -> Result<Imported> {
        let mode = self.ask(Method::GET, &["mode"], &[], None).await?;
        let before = mode["mode"].as_str().unwrap_or("READWRITE").to_owned();
        let set = async |mode: &str| {
            self.ask(Method::PUT, &["mode"], &[("force", "true")], Some(json!({"mode": mode}))).await
        };
        set("IMPORT").await?;
        let imported = self.import_all(entries).await;
        set(&before).await?;
        imported
    }

    async fn import_all(&self, entries: &[Entry]) -> Result<Imported> {
        let mut imported = Imported::default();
        let mut schemas: Vec<&SchemaEntry> = entries.iter().filter_map(Entry::schema).collect();
        while !schemas.is_empty() {
            let mut later = Vec::new();
            let mut last = None;
            for entry in &schemas {
                let path = ["subjects", entry.subject.as_str(), "versions"];
                match self.ask(Method::POST, &path, &[], Some(json!(entry.request()))).await {
                    Ok(_) => imported.schemas += 1,
                    // What it refers to may come further down.
                    Err(error @ Error::Answered { code: 42201, .. }) => {
                        later.push(*entry);
                        last = Some(error);
                    }
                    Err(error) => return Err(error),
                }
            }
            if let Some(error) = last
                && later.len() == schemas.len()
            {
                return Err(error);
            }
            schemas = later;
        }
        for entry in entries.iter().rev().filter_map(Entry::schema).filter(|entry| entry.deleted) {
            let path = ["subjects", entry.subject.as_str(), "versions", &entry.version.to_string()];
            match self.ask(Method::DELETE, &path, &[], None).await {
                Ok(_) | Err(Error::Answered { code: 40406, .. }) => {}
                Err(error) => return Err(error),
            }
        }
        for entry in entries {
            let Entry::Config { scope, config } = entry else { continue };
            let mut path = vec!["config"];
            path.extend((!scope.is_empty()).then_some(scope.as_str()));
            self.ask(Method::PUT, &path, &[], Some(Value::Object(config.request()))).await?;
            imported.settings += 1;
        }
        Ok(imported)
    }

    async fn ask_if(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Option<Value>> {
        match self.ask(Method::GET, path, query, None).await {
            Ok(answer) => Ok(Some(answer)),
            Err(Error::Answered { status: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn ask(&self, method: Method, path: &[&str], query: &[(&str, &str)], body: Option<Value>) -> Result<Value> {
        let url = self.path(path, query);
        let body = body.map(|body| body.to_string());
        let mut pause = PAUSE;
        for tried in 1.. {
            let failed = match self.once(method.clone(), url.clone(), body.clone()).await {
                Err(error @ Error::Unreachable { .. }) => error,
                Err(error @ Error::Answered { status: 429 | 500.., .. }) => error,
                other => return other,
            };
            if tried == TRIES {
                return Err(failed);
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        Err(Error::Closed)
    }

    fn path(&self, path: &[&str], query: &[(&str, &str)]) -> Url {
        let mut url = self.at.url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    async fn once(&self, method: Method, url: Url, body: Option<String>) -> Result<Value> {
        let answer = self.send(method, url, body).await;
        self.answers.note(&answer, now_micros());
        answer
    }

    async fn send(&self, method: Method, url: Url, body: Option<String>) -> Result<Value> {
        let mut request = self.http.request(method, url).header("Accept", V1);
        if let Some((user, password)) = &self.at.basic {
            request = request.basic_auth(user, Some(password));
        }
        if let Some(token) = &self.at.bearer {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.header("Content-Type", V1).body(body);
        }
        let unreachable = |error: reqwest::Error| Error::Unreachable {
            url: self.url().into(),
            source: Box::new(error.without_url()),
        };
        let answer = request.send().await.map_err(unreachable)?;
        let status = answer.status();
        if answer.content_length().is_some_and(|length| length > MOST) {
            return Err(self.unusable("its answer is too large"));
        }
        let bytes = answer.bytes().await.map_err(unreachable)?;
        let value: Option<Value> = serde_json::from_slice(&bytes).ok();
        if status.is_success() {
            let empty = (status == StatusCode::NO_CONTENT).then_some(Value::Null);
            return value.or(empty).ok_or_else(|| self.unusable("its answer is not JSON"));
        }
        let value = value.unwrap_or_default();
        let status = status.as_u16();
        Err(Error::Answered {
            url: self.url().into(),
            status,
            code: value["error_code"].as_i64().unwrap_or(status.into()),
            message: value["message"].as_str().unwrap_or("no message").chars().take(2_000).collect(),
        })
    }

    fn read<T: serde::de::DeserializeOwned>(&self, value: Value) -> Result<T> {
        serde_json::from_value(value).map_err(|error| self.unusable(&error.to_string()))
    }

    fn unusable(&self, why: &str) -> Error {
        Error::Unreachable { url: self.url().into(), source: why.into() }
    }
}

/// Wall time for people to read; nothing is decided by it.
fn now_micros() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_micros() as i64)
}

impl Config {
    /// As a request has it.
    pub(crate) fn request(&self) -> Map<String, Value> {
        let Value::Object(mut members) = json!(self) else { return Map::new() };
        if let Some(level) = members.remove("compatibilityLevel") {
            members.insert("compatibility".into(), level);
        }
        members
    }
}
