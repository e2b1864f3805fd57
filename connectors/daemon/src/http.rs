//! `[http]`: whether the daemon runs, how well, and in numbers.
//!
//! `/livez` and `/readyz` answer everybody who may connect, for supervisors
//! have no passwords; why it is not ready is told to who may read.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use config::{Config, Listen};
use connector::{Error, Result};
use connector_postgres::Finding;
use listener::{Gate, Listener, Refused, Role, Serve, TlsFiles, Token, User};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::registry::Face;
use crate::status::{Live, now_micros};
use crate::{exposition, metrics, status};

/// A server is asked for a sign of life every 2 seconds, and may be slow.
const SILENCE: Duration = Duration::from_secs(10);

/// An address that is ours.
pub(crate) struct Http {
    listener: Listener,
    patience: Duration,
    folder: PathBuf,
}

struct App {
    lives: Arc<Vec<Live>>,
    registry: Arc<Face>,
    gate: Arc<Gate>,
    patience: Duration,
    folder: PathBuf,
}

impl Http {
    /// Listens, if that is configured.
    pub(crate) async fn open(config: &Config) -> Result<Option<Self>> {
        let Some(http) = &config.http else { return Ok(None) };
        let listener = Listener::bind(serve(&http.listen)).await.map_err(|error| {
            Error::halt("could not serve `[http]`")
                .because(error)
                .hint("check `bind` and the files of `tls` in `[http]`, and that nothing else listens there")
        })?;
        tracing::info!(address = %http.listen.bind, tls = http.listen.tls.is_some(), "http open");
        Ok(Some(Self { listener, patience: http.patience, folder: config.data_dir.clone() }))
    }

    /// Answers until stopped.
    pub(crate) async fn run(self, lives: Arc<Vec<Live>>, registry: Arc<Face>, stop: CancellationToken) {
        let Self { listener, patience, folder } = self;
        let app = Arc::new(App { lives, registry, gate: listener.gate(), patience, folder });
        let router = Router::new()
            .route("/livez", get(livez))
            .route("/readyz", get(readyz))
            .route("/metrics", get(all_metrics))
            .route("/status", get(whole_status))
            .fallback(async || answer(StatusCode::NOT_FOUND, "there is /livez, /readyz, /metrics and /status\n"))
            .with_state(app);
        listener.run(router, stop).await;
    }
}

/// Whether `run` could have its address.
pub(crate) async fn check(config: &Config, running: bool) -> Option<Finding> {
    let http = config.http.as_ref().filter(|_| !running)?;
    let bound = Listener::bind(serve(&http.listen)).await;
    Some(match bound {
        Ok(_) => Finding::ok(format!("{} is free", http.listen.bind)),
        Err(error) => {
            Finding::error(error.to_string()).remedy("end what listens there, or change `bind` and the files of `tls`")
        }
    })
}

/// As the configuration has it.
pub(crate) fn serve(listen: &Listen) -> Serve {
    let user = |(name, user): (&String, &config::ListenUser)| User {
        name: name.clone(),
        hash: user.password.expose().into(),
        role: role(user.role),
    };
    Serve {
        bind: listen.bind,
        tls: listen.tls.as_ref().map(|tls| TlsFiles {
            cert: tls.cert.clone(),
            key: tls.key.clone(),
            client_ca: tls.client_ca.clone(),
            client_role: role(tls.client_role),
        }),
        users: listen.users.iter().map(user).collect(),
        tokens: listen.tokens.values().map(|token| Token::new(token.token.expose(), role(token.role))).collect(),
        connections: usize::try_from(listen.max_connections).unwrap_or(usize::MAX),
    }
}

fn role(role: config::Role) -> Role {
    match role {
        config::Role::Read => Role::Read,
        config::Role::Write => Role::Write,
        config::Role::Admin => Role::Admin,
    }
}

type Shared = State<Arc<App>>;

impl App {
    async fn status(&self) -> Value {
        status::live(&self.lives, self.registry.status()).await
    }

    /// None: it may read.
    async fn refused(&self, request: Request) -> Option<Refused> {
        // Every role may read.
        self.gate.admit(&request).await.err()
    }
}

async fn livez(State(app): Shared, request: Request) -> Response {
    match app.refused(request).await {
        Some(Refused::Host) => refuse(Refused::Host),
        _ => answer(StatusCode::OK, "alive\n"),
    }
}

async fn readyz(State(app): Shared, request: Request) -> Response {
    let refused = app.refused(request).await;
    if refused == Some(Refused::Host) {
        return refuse(Refused::Host);
    }
    let why = not_ready(&app.status().await, app.patience, now_micros());
    match (why.is_empty(), refused) {
        (true, _) => answer(StatusCode::OK, "ready\n"),
        (false, None) => answer(StatusCode::SERVICE_UNAVAILABLE, why.join("\n") + "\n"),
        (false, Some(_)) => answer(StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
    }
}

async fn all_metrics(State(app): Shared, request: Request) -> Response {
    if let Some(refused) = app.refused(request).await {
        return refuse(refused);
    }
    let status = app.status().await;
    let mut answer = metrics::render(&status, &app.folder, now_micros()).into_response();
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(exposition::CONTENT_TYPE));
    answer
}

async fn whole_status(State(app): Shared, request: Request) -> Response {
    if let Some(refused) = app.refused(request).await {
        return refuse(refused);
    }
    let mut answer = app.status().await.to_string().into_response();
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

fn refuse(refused: Refused) -> Response {
    let status = match refused {
        Refused::Host => StatusCode::FORBIDDEN,
        Refused::Unknown => StatusCode::UNAUTHORIZED,
    };
    let mut answer = answer(status, format!("{}\n", refused.message()));
    if refused == Refused::Unknown {
        let how = HeaderValue::from_static("Basic realm=\"highwater\", charset=\"UTF-8\"");
        answer.headers_mut().insert(header::WWW_AUTHENTICATE, how);
    }
    answer
}

fn answer(status: StatusCode, text: impl Into<String>) -> Response {
    (status, text.into()).into_response()
}

/// What of the sources and sinks does not work, a line each. What a person has
/// ordered to stand still is as it should be.
fn not_ready(status: &Value, patience: Duration, now: i64) -> Vec<String> {
    let mut why = Vec::new();
    for (kind, of) in [("source", "sources"), ("sink", "sinks")] {
        for part in status[of].as_array().into_iter().flatten() {
            let name = part["name"].as_str().unwrap_or_default();
            let error = part["problem"]["error"].as_str();
            let since = part["problem"]["since"].as_i64();
            let seconds = since.map_or(0, |since| now.saturating_sub(since).max(0) / 1_000_000);
            let silent = part["silent_seconds"].as_u64().filter(|_| part["doing"] != "snapshot").unwrap_or(0);
            let told = match part["health"].as_str().unwrap_or_default() {
                "paused" => continue,
                "running" if error.is_some() => error.map(str::to_owned),
                "running" if silent >= (patience + SILENCE).as_secs() => {
                    Some(format!("the server has said nothing for {silent} s"))
                }
                "running" => continue,
                "retrying" if (seconds as u64) < patience.as_secs() => continue,
                "retrying" => error.map(|error| format!("fails for {seconds} s: {error}")),
                state => Some(error.map_or_else(|| state.to_owned(), |error| format!("{state}: {error}"))),
            };
            why.push(format!("{kind} {name}: {}", told.unwrap_or_else(|| "fails".into())));
        }
    }
    why
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ready_is_what_moves_or_stands_still_as_ordered() {
        let check = |source: Value, expected: Option<&str>| {
            let status = json!({"sources": [source], "sinks": []});
            let why = not_ready(&status, Duration::from_secs(30), 100_000_000);
            assert_eq!(why.first().map(String::as_str), expected, "{status}");
        };
        let failing = |health: &str, since: i64| json!({"name": "s", "health": health, "problem": {"error": "x", "since": since}});
        check(json!({"name": "s", "health": "running", "problem": null, "silent_seconds": 39}), None);
        check(json!({"name": "s", "health": "paused", "problem": null}), None);
        check(failing("retrying", 71_000_000), None);
        check(failing("retrying", 70_000_000), Some("source s: fails for 30 s: x"));
        check(failing("halted", 99_000_000), Some("source s: halted: x"));
        check(failing("detached", 99_000_000), Some("source s: detached: x"));
        check(json!({"name": "s", "health": "starting", "problem": null}), Some("source s: starting"));
        check(
            json!({"name": "s", "health": "running", "problem": {"error": "disk full", "remedy": ""}}),
            Some("source s: disk full"),
        );
        let silent = |doing: &str| json!({"name": "s", "health": "running", "doing": doing, "problem": null, "silent_seconds": 40});
        check(silent("streaming"), Some("source s: the server has said nothing for 40 s"));
        check(silent("snapshot"), None);
    }
}
