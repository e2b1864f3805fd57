//! `type = "object-store"`: files in a folder or a bucket.

use std::collections::BTreeMap;
use std::time::Duration;

use figment::value::Value;
use url::Url;

use crate::section::{Secret, Section, secret};

/// An object-store sink.
#[derive(Clone, Debug)]
pub struct ObjectStore {
    /// `file:///…` or `s3://bucket/prefix`.
    pub url: Url,
    /// A step ends when so many bytes of the log were taken.
    pub cut_bytes: u64,
    /// Or when its first event has waited so long.
    pub cut_age: Duration,
    /// Of the store's client: region, endpoint, keys.
    pub options: BTreeMap<String, Secret>,
    /// `_hw_before` in every table.
    pub before: bool,
    /// Of our own columns.
    pub meta_prefix: String,
}

/// Options of which the value is a secret: by reference only.
const SECRET: &[&str] = &["secret_access_key", "session_token"];
const KNOWN: &[&str] = &[
    "endpoint",
    "region",
    "access_key_id",
    "secret_access_key",
    "session_token",
    "virtual_hosted_style_request",
    "allow_http",
];

impl ObjectStore {
    pub(crate) fn read(mut section: Section<'_>) -> Self {
        const FORM: &str = "write it like file:///var/lake or s3://bucket/prefix";
        let text = section.required("url");
        let mut url = Url::parse("file:///").expect("it is one");
        match Url::parse(&text) {
            Ok(parsed) if matches!(parsed.scheme(), "file" | "s3") => url = parsed,
            Ok(parsed) if matches!(parsed.scheme(), "gs" | "az" | "azure" | "abfs") => {
                section.fault("url", format!("{:?} is not in this version", parsed.scheme()), Some(FORM));
            }
            Ok(parsed) if matches!(parsed.scheme(), "http" | "https") => {
                let why = "HTTP and WebDAV have no conditional writes, which exactly-once needs";
                section.fault("url", why, Some(FORM));
            }
            _ if text.is_empty() => {}
            _ => section.fault("url", "is no url of an object store", Some(FORM)),
        }
        if !matches!(section.choice("format", &["parquet", "avro", "ndjson"]), "parquet") {
            section.fault("format", "is not in this version", Some("\"parquet\""));
        }
        let (mut cut_bytes, mut cut_age) = (128 << 20, Duration::from_secs(60));
        if let Some(mut cut) = section.section("cut") {
            cut_bytes = cut.bytes("bytes").unwrap_or(cut_bytes).max(1);
            cut_age = cut.duration("age").unwrap_or(cut_age);
            cut.finish();
        }
        let mut options = BTreeMap::new();
        let given = section.section("options").map(|mut given| (given.path.clone(), given.rest()));
        if let Some((path, given)) = given {
            let near = given
                .get("endpoint")
                .and_then(Value::as_str)
                .and_then(|endpoint| Url::parse(endpoint).ok())
                .and_then(|endpoint| endpoint.host_str().map(str::to_owned))
                .is_some_and(|host| host == "localhost" || host == "127.0.0.1" || host == "[::1]");
            for (key, value) in given {
                let key_path = format!("{path}.{key}");
                if !KNOWN.contains(&key.as_str()) {
                    let meant = crate::fault::nearest(&key, KNOWN.iter().copied());
                    let meant = meant.map(|meant| format!("did you mean `{meant}`?"));
                    section.faulty.add(&key_path, "is not an option", meant);
                    continue;
                }
                let literal = near || !SECRET.contains(&key.as_str());
                let value = match value {
                    Value::Bool(tag, flag) => Value::String(tag, flag.to_string()),
                    value => value,
                };
                match secret(value, literal, &section.faulty.file) {
                    Ok(value) => drop(options.insert(key, value)),
                    Err((what, how)) => section.faulty.add(&key_path, what, how.map(str::to_owned)),
                }
            }
        }
        let before = section.flag("before", false);
        let meta_prefix = section.text("meta_prefix").unwrap_or_else(|| "_hw_".into());
        if meta_prefix.is_empty() {
            section.fault("meta_prefix", "may not be empty", None);
        }
        section.finish();
        Self { url, cut_bytes, cut_age, options, before, meta_prefix }
    }
}
