//! `type = "object-store"`: files in a folder or a bucket.

use std::collections::BTreeMap;
use std::time::Duration;

use figment::value::{Dict, Value};
use url::Url;

use crate::fault::nearest;
use crate::section::{Secret, Section, secret};

/// An object-store sink.
#[derive(Clone, Debug)]
pub struct ObjectStore {
    /// `file:///…`, `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`.
    pub url: Url,
    /// What the files are.
    pub format: FileFormat,
    /// How they are compressed; one that the format has.
    pub compression: Compression,
    /// Folders within a stream's.
    pub partition: Option<PartitionBy>,
    /// Files go once they are so old. None: they stay.
    pub retain: Option<Duration>,
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

/// What files are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileFormat {
    /// Columns.
    Parquet,
    /// Object container files.
    Avro,
    /// A JSON object a line.
    Ndjson,
}

/// How files are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Every format has it.
    Zstd,
    /// NDJSON.
    Gzip,
    /// Avro.
    Deflate,
    /// Avro and NDJSON.
    None,
}

/// What chooses a file's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartitionBy {
    /// The day of the commit, in UTC.
    CommitDate,
    /// A column's value, in tables that have it.
    Column(String),
}

/// An option of a store's client.
struct Known {
    name: &'static str,
    kind: Kind,
}

#[derive(PartialEq)]
enum Kind {
    Plain,
    /// By reference only.
    Secret,
    /// Of this machine, relative to the configuration's file.
    Path,
}

const fn plain(name: &'static str) -> Known {
    Known { name, kind: Kind::Plain }
}

const fn hidden(name: &'static str) -> Known {
    Known { name, kind: Kind::Secret }
}

const fn path(name: &'static str) -> Known {
    Known { name, kind: Kind::Path }
}

/// Of every store that is spoken to over HTTP.
const CLIENT: &[Known] = &[plain("endpoint"), plain("allow_http"), hidden("proxy_url"), plain("proxy_excludes")];
const S3: &[Known] = &[
    plain("region"),
    plain("access_key_id"),
    hidden("secret_access_key"),
    hidden("session_token"),
    plain("virtual_hosted_style_request"),
    plain("server_side_encryption"),
    plain("sse_kms_key_id"),
    plain("sse_bucket_key_enabled"),
    hidden("sse_customer_key_base64"),
];
const GCS: &[Known] = &[
    path("service_account"),
    hidden("service_account_key"),
    path("application_credentials"),
    hidden("bearer_token"),
    plain("skip_signature"),
];
const AZURE: &[Known] = &[
    plain("account_name"),
    hidden("account_key"),
    hidden("sas_token"),
    plain("tenant_id"),
    plain("client_id"),
    hidden("client_secret"),
    path("federated_token_file"),
    hidden("encryption_key"),
];

impl ObjectStore {
    pub(crate) fn read(mut section: Section<'_>) -> Self {
        const FORM: &str =
            "write it like file:///var/lake, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix";
        let text = section.required("url");
        let mut url = Url::parse("file:///").expect("it is one");
        match Url::parse(&text) {
            Ok(parsed) if parsed.scheme() == "file" => url = parsed,
            Ok(parsed) if matches!(parsed.scheme(), "s3" | "gs" | "az") => match parsed.host_str() {
                None | Some("") => section.fault("url", "names no bucket", Some(FORM)),
                Some(_) => url = parsed,
            },
            Ok(parsed) if matches!(parsed.scheme(), "http" | "https" | "webdav" | "dav") => {
                let why = "HTTP and WebDAV have no conditional writes, which exactly-once needs";
                section.fault("url", why, Some(FORM));
            }
            _ if text.is_empty() => {}
            _ => section.fault("url", "is no url of an object store", Some(FORM)),
        }
        let (format, compressions): (_, &[&'static str]) =
            match section.choice("format", &["parquet", "avro", "ndjson"]) {
                "avro" => (FileFormat::Avro, &["zstd", "deflate", "none"]),
                "ndjson" => (FileFormat::Ndjson, &["gzip", "zstd", "none"]),
                _ => (FileFormat::Parquet, &["zstd"]),
            };
        let compression = match section.choice("compression", compressions) {
            "zstd" => Compression::Zstd,
            "gzip" => Compression::Gzip,
            "deflate" => Compression::Deflate,
            _ => Compression::None,
        };
        let partition = section.section("partition").and_then(partition);
        let retain = section.section("retain").and_then(|mut retain| {
            let age = retain.duration("age");
            if age.is_some_and(|age| age < Duration::from_secs(60)) {
                retain.fault("age", "is less than a minute", None);
            }
            retain.finish();
            age
        });
        let (mut cut_bytes, mut cut_age) = (128 << 20, Duration::from_secs(60));
        if let Some(mut cut) = section.section("cut") {
            cut_bytes = cut.bytes("bytes").unwrap_or(cut_bytes).max(1);
            cut_age = cut.duration("age").unwrap_or(cut_age);
            cut.finish();
        }
        let given = section.section("options").map(|mut given| (given.path.clone(), given.rest()));
        let options = given.map(|(path, given)| options(&mut section, &url, &path, given)).unwrap_or_default();
        let before = section.flag("before", false);
        let meta_prefix = section.text("meta_prefix").unwrap_or_else(|| "_hw_".into());
        if meta_prefix.is_empty() {
            section.fault("meta_prefix", "may not be empty", None);
        }
        section.finish();
        Self { url, format, compression, partition, retain, cut_bytes, cut_age, options, before, meta_prefix }
    }
}

fn partition(mut section: Section<'_>) -> Option<PartitionBy> {
    const HOW: &str = "write { by = \"commit_date\" } or { column = \"country\" }";
    let (by, column) = (section.text("by"), section.text("column"));
    let partition = match (by.as_deref(), column) {
        (Some("commit_date"), None) => Some(PartitionBy::CommitDate),
        (None, Some(column)) if !column.is_empty() => Some(PartitionBy::Column(column)),
        (Some(by), None) => {
            section.fault("by", format!("{by:?} is not known"), Some(HOW));
            None
        }
        _ => {
            section.fault("by", "or `column` must be there, one of both", Some(HOW));
            None
        }
    };
    section.finish();
    partition
}

fn options(section: &mut Section<'_>, url: &Url, path: &str, given: Dict) -> BTreeMap<String, Secret> {
    let of_store = match url.scheme() {
        "s3" => S3,
        "gs" => GCS,
        "az" => AZURE,
        _ => &[],
    };
    let known = || CLIENT.iter().filter(|_| url.scheme() != "file").chain(of_store);
    let near = given
        .get("endpoint")
        .and_then(Value::as_str)
        .and_then(|endpoint| Url::parse(endpoint).ok())
        .and_then(|endpoint| endpoint.host_str().map(str::to_owned))
        .is_some_and(|host| host == "localhost" || host == "127.0.0.1" || host == "[::1]");
    let mut options = BTreeMap::new();
    for (key, value) in given {
        let key_path = format!("{path}.{key}");
        let Some(option) = known().find(|known| known.name == key) else {
            let meant = nearest(&key, known().map(|known| known.name));
            let meant = meant.map(|meant| format!("did you mean `{meant}`?"));
            section.faulty.add(&key_path, format!("is not an option of {}:// urls", url.scheme()), meant);
            continue;
        };
        // A proxy without a password is no secret.
        let public = key == "proxy_url"
            && value.as_str().and_then(|proxy| Url::parse(proxy).ok()).is_some_and(|proxy| proxy.password().is_none());
        let literal = near || public || option.kind != Kind::Secret;
        let value = match value {
            Value::Bool(tag, flag) => Value::String(tag, flag.to_string()),
            value => value,
        };
        match secret(value, literal, &section.faulty.file) {
            Ok(value) if option.kind == Kind::Path => {
                let base = section.faulty.file.parent().unwrap_or(std::path::Path::new("."));
                let file = base.join(value.expose());
                if let Err(error) = std::fs::File::open(&file) {
                    section.faulty.add(&key_path, format!("{} cannot be read: {error}", file.display()), None);
                }
                options.insert(key, Secret::new(file.to_string_lossy()));
            }
            Ok(value) => drop(options.insert(key, value)),
            Err((what, how)) => section.faulty.add(&key_path, what, how.map(str::to_owned)),
        }
    }
    options
}
