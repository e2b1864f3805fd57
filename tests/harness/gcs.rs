//! A Google Cloud Storage of the tests: there is no emulator that tells
//! generation preconditions right, so this is the XML API as its documentation
//! has it, as far as an object store needs it: objects with generations,
//! `x-goog-if-generation-match`, uploads in parts, listings in pages.
//! <https://cloud.google.com/storage/docs/xml-api/reference-headers#xgoogifgenerationmatch>

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use object_store::ObjectStore;
use object_store::gcp::GoogleCloudStorageBuilder;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Keys in a page of a listing: less than real, so that there are pages.
const PAGE: usize = 7;
const BUCKET: &str = "lake";
const TOKEN: &str = "Bearer test";

/// A server; what it holds goes with it.
pub struct Gcs {
    pub port: u16,
    state: Arc<State>,
    server: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    held: Mutex<Held>,
    /// Of writes that take effect, each so-manieth gets no answer; 0: all do.
    lose: AtomicU64,
    writes: AtomicU64,
    lost: AtomicU64,
    /// Like a server that has never heard of preconditions.
    careless: AtomicBool,
}

#[derive(Default)]
struct Held {
    objects: BTreeMap<String, Object>,
    uploads: BTreeMap<String, BTreeMap<u32, Bytes>>,
    last: u64,
}

#[derive(Clone)]
struct Object {
    body: Bytes,
    generation: u64,
    at: std::time::SystemTime,
}

type Answer = Response<Full<Bytes>>;

impl Gcs {
    /// On a port of its own, with the bucket `lake`.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State::default());
        let of_server = state.clone();
        let server = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let state = of_server.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let state = state.clone();
                        async move { state.answer(request).await }
                    });
                    // A lost answer ends its connection.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { port, state, server }
    }

    /// From now on each n-th write takes effect and gets no answer; 0: all get one.
    pub fn lose_answers(&self, every: u64) {
        self.state.lose.store(every, Ordering::SeqCst);
    }

    /// From now on preconditions are not looked at.
    pub fn forget_preconditions(&self) {
        self.state.careless.store(true, Ordering::SeqCst);
    }

    /// How many answers were lost.
    pub fn lost(&self) -> u64 {
        self.state.lost.load(Ordering::SeqCst)
    }

    /// Uploads in parts that were neither completed nor aborted.
    pub fn uploads(&self) -> usize {
        self.state.held.lock().unwrap().uploads.len()
    }

    /// Its options, as a sink's configuration has them.
    pub fn options(&self) -> String {
        format!("{{ endpoint = \"http://127.0.0.1:{}\", bearer_token = \"test\" }}", self.port)
    }

    /// To look into it.
    pub fn store(&self) -> Arc<dyn ObjectStore> {
        let builder = GoogleCloudStorageBuilder::new()
            .with_bucket_name(BUCKET)
            .with_config("base_url".parse().unwrap(), format!("http://127.0.0.1:{}", self.port))
            .with_config("bearer_token".parse().unwrap(), "test");
        Arc::new(builder.build().unwrap())
    }
}

impl Drop for Gcs {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl State {
    async fn answer(&self, request: Request<Incoming>) -> Result<Answer, String> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
        if parts.headers.get("authorization").is_none_or(|token| token != TOKEN) {
            return Ok(fault(StatusCode::UNAUTHORIZED, "AuthenticationRequired"));
        }
        let query: BTreeMap<String, String> = parts
            .uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(key, value)| (decode(key), decode(&value.replace('+', " "))))
            .collect();
        let path = parts.uri.path().trim_start_matches('/');
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        let key = decode(key);
        if bucket != BUCKET {
            return Ok(fault(StatusCode::NOT_FOUND, "NoSuchBucket"));
        }
        let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let mut held = self.held.lock().unwrap();
        let (answer, wrote) = match (parts.method, query.get("uploadId")) {
            (Method::GET, _) if key.is_empty() => (held.list(&query), false),
            (Method::GET | Method::HEAD, _) => (held.get(&key, header("range")), false),
            (Method::PUT, Some(upload)) => match held.uploads.get_mut(upload) {
                Some(parts) => {
                    parts.insert(query["partNumber"].parse().unwrap(), body);
                    (tagged(Response::new(Full::default()), &query["partNumber"]), true)
                }
                None => (fault(StatusCode::NOT_FOUND, "NoSuchUpload"), false),
            },
            (Method::PUT, None) => {
                let condition = header("x-goog-if-generation-match");
                held.put(key, body, condition.filter(|_| !self.careless.load(Ordering::SeqCst)))
            }
            (Method::POST, Some(upload)) => match held.uploads.remove(upload) {
                Some(parts) => {
                    let body: Vec<u8> = parts.into_values().flatten().collect();
                    let (answer, wrote) = held.put(key, body.into(), None);
                    let tag = answer.headers()["etag"].to_str().unwrap().replace('"', "&quot;");
                    let text =
                        format!("<CompleteMultipartUploadResult><ETag>{tag}</ETag></CompleteMultipartUploadResult>");
                    (answer.map(|_| Full::from(text)), wrote)
                }
                None => (fault(StatusCode::NOT_FOUND, "NoSuchUpload"), false),
            },
            (Method::POST, None) if query.contains_key("uploads") => {
                held.last += 1;
                let id = format!("upload-{}", held.last);
                held.uploads.insert(id.clone(), BTreeMap::new());
                let text =
                    format!("<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>");
                (Response::new(Full::from(text)), true)
            }
            (Method::DELETE, Some(upload)) => match held.uploads.remove(upload) {
                Some(_) => (status(StatusCode::NO_CONTENT), true),
                None => (fault(StatusCode::NOT_FOUND, "NoSuchUpload"), false),
            },
            (Method::DELETE, None) => match held.objects.remove(&key) {
                Some(_) => (status(StatusCode::NO_CONTENT), true),
                None => (fault(StatusCode::NOT_FOUND, "NoSuchKey"), false),
            },
            _ => (fault(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"), false),
        };
        drop(held);
        let lose = self.lose.load(Ordering::SeqCst);
        if wrote && lose > 0 && self.writes.fetch_add(1, Ordering::SeqCst) % lose == lose - 1 {
            self.lost.fetch_add(1, Ordering::SeqCst);
            return Err("the answer is lost".into());
        }
        Ok(answer)
    }
}

impl Held {
    fn put(&mut self, key: String, body: Bytes, condition: Option<String>) -> (Answer, bool) {
        let now = self.objects.get(&key).map_or(0, |object| object.generation);
        if condition.is_some_and(|condition| condition != now.to_string()) {
            return (fault(StatusCode::PRECONDITION_FAILED, "PreconditionFailed"), false);
        }
        self.last += 1;
        let generation = self.last;
        self.objects.insert(key, Object { body, generation, at: std::time::SystemTime::now() });
        let mut answer = tagged(Response::new(Full::default()), &generation.to_string());
        answer.headers_mut().insert("x-goog-generation", generation.into());
        (answer, true)
    }

    fn get(&self, key: &str, range: Option<String>) -> Answer {
        let Some(object) = self.objects.get(key) else { return fault(StatusCode::NOT_FOUND, "NoSuchKey") };
        let mut body = object.body.clone();
        let mut code = StatusCode::OK;
        let mut content_range = None;
        if let Some(range) = range.as_deref().and_then(|range| range.strip_prefix("bytes=")) {
            let (first, last) = range.split_once('-').unwrap();
            let length = body.len();
            let (first, end) = match (first.parse::<usize>(), last.parse::<usize>()) {
                (Ok(first), Ok(last)) => (first, (last + 1).min(length)),
                (Ok(first), Err(_)) => (first, length),
                (Err(_), Ok(suffix)) => (length.saturating_sub(suffix), length),
                _ => return fault(StatusCode::RANGE_NOT_SATISFIABLE, "InvalidRange"),
            };
            if first >= end {
                return fault(StatusCode::RANGE_NOT_SATISFIABLE, "InvalidRange");
            }
            content_range = Some(format!("bytes {first}-{}/{length}", end - 1));
            (body, code) = (body.slice(first..end), StatusCode::PARTIAL_CONTENT);
        }
        let length = body.len();
        let mut answer = tagged(Response::new(Full::from(body)), &object.generation.to_string());
        *answer.status_mut() = code;
        let headers = answer.headers_mut();
        headers.insert("content-length", length.into());
        headers.insert("last-modified", httpdate(object.at).parse().unwrap());
        headers.insert("x-goog-generation", object.generation.into());
        if let Some(range) = content_range {
            headers.insert("content-range", range.parse().unwrap());
        }
        answer
    }

    fn list(&self, query: &BTreeMap<String, String>) -> Answer {
        let of = |name: &str| query.get(name).map(String::as_str).unwrap_or_default();
        let (prefix, delimiter) = (of("prefix"), of("delimiter"));
        let after = of("start-after").max(of("continuation-token"));
        let page = query.get("max-keys").and_then(|keys| keys.parse().ok()).unwrap_or(PAGE).min(PAGE);
        let (mut text, mut shown, mut prefixes, mut last) = (String::new(), 0, BTreeSet::new(), "");
        let mut more = false;
        for (key, object) in self.objects.iter().filter(|(key, _)| key.starts_with(prefix) && key.as_str() > after) {
            if shown + prefixes.len() >= page {
                more = true;
                break;
            }
            last = key;
            match key[prefix.len()..].split_once(delimiter) {
                Some((folder, _)) if !delimiter.is_empty() => {
                    prefixes.insert(format!("{prefix}{folder}{delimiter}"));
                }
                _ => {
                    shown += 1;
                    let (size, generation) = (object.body.len(), object.generation);
                    let _ = write!(
                        text,
                        "<Contents><Key>{}</Key><Size>{size}</Size><ETag>&quot;{generation}&quot;</ETag><LastModified>{}</LastModified></Contents>",
                        escape(key),
                        rfc3339(object.at)
                    );
                }
            }
        }
        for prefix in prefixes {
            let _ = write!(text, "<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>", escape(&prefix));
        }
        if more {
            let _ = write!(text, "<NextContinuationToken>{}</NextContinuationToken>", escape(last));
        }
        Response::new(Full::from(format!("<ListBucketResult>{text}</ListBucketResult>")))
    }
}

fn status(code: StatusCode) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = code;
    answer
}

fn fault(code: StatusCode, name: &str) -> Answer {
    let mut answer = Response::new(Full::from(format!("<Error><Code>{name}</Code></Error>")));
    *answer.status_mut() = code;
    answer
}

fn tagged(mut answer: Answer, tag: &str) -> Answer {
    answer.headers_mut().insert("etag", format!("\"{tag}\"").parse().unwrap());
    answer
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut i) = (Vec::new(), 0);
    while i < bytes.len() {
        match (bytes[i], text.get(i + 1..i + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                i += 3;
            }
            (byte, _) => {
                out.push(byte);
                i += 1;
            }
        }
    }
    String::from_utf8(out).unwrap()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Seconds since 1970 as a civil time.
fn civil(at: std::time::SystemTime) -> (i64, u32, u32, u64, u64, u64, u64) {
    let seconds = at.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let days = seconds / 86_400;
    let (year, month, day) = connector::civil_from_days(days as i64);
    (year, month, day, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60, (days + 4) % 7)
}

fn rfc3339(at: std::time::SystemTime) -> String {
    let (year, month, day, hour, minute, second, _) = civil(at);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.000Z")
}

fn httpdate(at: std::time::SystemTime) -> String {
    let (year, month, day, hour, minute, second, weekday) = civil(at);
    let weekday = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"][weekday as usize];
    let names = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = names[month as usize - 1];
    format!("{weekday}, {day:02} {month} {year} {hour:02}:{minute:02}:{second:02} GMT")
}
