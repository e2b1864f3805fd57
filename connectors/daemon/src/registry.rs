//! The registry as configured: opened, and served if that is asked for.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use config::{Config, ExternalRegistry};
use connector::{Error, Result};
use connector_postgres::Finding;
use listener::Answered;
use schema_registry::{Client, Counts, Elsewhere, Limits, Registrar, Server, Store};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::exit::log_error;
use crate::http::serve;
use crate::layout;

/// Where sources register.
pub(crate) struct Registry {
    pub(crate) registrar: Registrar,
    /// For `status`.
    pub(crate) face: Face,
    /// Ours; None if another one is used.
    store: Option<Arc<Store>>,
    server: Option<Server>,
}

/// The registry as `status` shows it.
#[derive(Clone)]
pub(crate) enum Face {
    Own { store: Arc<Store>, bind: Option<SocketAddr>, tls: bool, answered: Answered },
    Elsewhere(Watched),
}

/// One that is elsewhere, asked now and then how it stands: tables whose
/// schemas are known would not notice.
#[derive(Clone)]
pub(crate) struct Watched {
    client: Arc<Client>,
    /// What the subjects of our sources begin with.
    prefixes: Arc<[String]>,
    /// How many they are, as last counted.
    subjects: Arc<Mutex<Option<usize>>>,
}

/// Between two looks.
const LOOK: Duration = Duration::from_secs(15);

impl Face {
    pub(crate) fn status(&self) -> Value {
        match self {
            Self::Own { store, bind, tls, answered } => {
                let counts = store.read(schema_registry::Registry::counts);
                own(*bind, *tls, Some(counts), &answered.by_status())
            }
            Self::Elsewhere(watched) => {
                let standing = watched.client.standing();
                json!({
                    "kind": "external",
                    "url": watched.client.url(),
                    "subjects": *watched.subjects.lock().unwrap_or_else(PoisonError::into_inner),
                    "answered": standing.answered,
                    "problem": standing.trouble,
                })
            }
        }
    }
}

fn own(bind: Option<SocketAddr>, tls: bool, counts: Option<Counts>, answered: &BTreeMap<u16, u64>) -> Value {
    json!({
        "kind": "own",
        "address": bind,
        "tls": tls,
        "subjects": counts.map(|counts| counts.subjects),
        "schemas": counts.map(|counts| counts.schemas),
        "versions": counts.map(|counts| counts.versions),
        "requests": answered,
        "problem": null,
    })
}

/// Of a stopped daemon: what its files tell.
pub(crate) fn stopped(config: &Config) -> Value {
    let (bind, tls) = match &config.registry {
        Some(config::Registry::External(external)) => {
            let url = external.url.as_str();
            return json!({"kind": "external", "url": url, "subjects": null, "answered": null, "problem": null});
        }
        Some(config::Registry::Served(served)) => (Some(served.listen.bind), served.listen.tls.is_some()),
        None => (None, false),
    };
    let folder = layout::registry(config);
    let counts = match folder.exists() {
        true => Store::peek(&folder).ok().map(|registry| registry.counts()),
        false => Some(Counts::default()),
    };
    own(bind, tls, counts, &BTreeMap::new())
}

impl Watched {
    fn new(client: Arc<Client>, config: &Config) -> Self {
        let prefixes = config.sources.keys().map(|source| format!("{source}.")).collect();
        Self { client, prefixes, subjects: Arc::default() }
    }

    async fn look(&self) -> schema_registry::Result<usize> {
        let mut count = 0;
        for prefix in &*self.prefixes {
            count += self.client.subjects(prefix).await?.len();
        }
        *self.subjects.lock().unwrap_or_else(PoisonError::into_inner) = Some(count);
        Ok(count)
    }

    /// Until stopped. What changes is said once.
    async fn watch(&self, stop: &CancellationToken) {
        if self.prefixes.is_empty() {
            return;
        }
        let mut well = true;
        loop {
            let looked = tokio::select! {
                () = stop.cancelled() => return,
                looked = self.look() => looked,
            };
            let url = self.client.url();
            match looked {
                Ok(_) if well => {}
                Ok(_) => tracing::info!(url, "registry answers again"),
                Err(ref error) if well => tracing::warn!(
                    url,
                    error = error as &dyn std::error::Error,
                    "registry does not answer: new shapes of tables will wait, known ones go on"
                ),
                Err(_) => {}
            }
            well = looked.is_ok();
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }
}

/// Whether `run` could use it; `running`: a daemon has this folder.
pub(crate) async fn check(config: &Config, running: bool) -> Vec<Finding> {
    let ok = |what: String| Finding::ok(what);
    let bad = |what: String, remedy: &str| Finding::error(what).remedy(remedy);
    if let Some(config::Registry::External(external)) = &config.registry {
        let client = match client(elsewhere(external)) {
            Ok(client) => Arc::new(client),
            Err(error) => return vec![bad(error.chain(), error.remedy().unwrap_or_default())],
        };
        let remedy = |client: &Client| client.standing().trouble.map_or("", |trouble| trouble.remedy);
        let looked = Watched::new(client.clone(), config).look().await;
        let count = match looked {
            Ok(count) => count,
            Err(error) => return vec![bad(chain(error), remedy(&client))],
        };
        let reached = ok(format!("reached {}: {count} subjects of these sources", client.url()));
        let may = match client.may_register().await {
            Ok(()) => ok("schemas may be registered there".into()),
            Err(error) => {
                let what = format!("schemas could not be registered: {}", chain(error));
                let remedy = match remedy(&client) {
                    "" => "set its mode to READWRITE, for all or for the subjects of these sources",
                    remedy => remedy,
                };
                bad(what, remedy)
            }
        };
        return vec![reached, may];
    }
    let folder = layout::registry(config);
    let mut findings = Vec::new();
    if folder.exists() {
        let peeked = tokio::task::spawn_blocking(move || Store::peek(&folder).map(|registry| registry.counts())).await;
        findings.push(match peeked {
            Ok(Ok(counts)) => ok(format!("{} subjects, {} schemas", counts.subjects, counts.schemas)),
            Ok(Err(error)) => bad(chain(error), "look at the disk, and keep a copy of the folder"),
            Err(error) => bad(format!("it could not be read: {error}"), "look at the disk"),
        });
    }
    if let (Some(config::Registry::Served(served)), false) = (&config.registry, running) {
        findings.push(match Server::bind(serve(&served.listen), 0).await {
            Ok(_) => ok(format!("{} is free for it", served.listen.bind)),
            Err(error) => bad(error.to_string(), "end what listens there, or change `bind` and the files of `tls`"),
        });
    }
    findings
}

fn chain(error: schema_registry::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

impl Registry {
    /// Opens it, and listens if it is to be served.
    pub(crate) async fn open(config: &Config) -> Result<Self> {
        let served = match &config.registry {
            Some(config::Registry::External(external)) => {
                let client = client(elsewhere(external))?;
                tracing::info!(url = client.url(), "registry elsewhere");
                let client = Arc::new(client);
                let face = Face::Elsewhere(Watched::new(client.clone(), config));
                return Ok(Self { registrar: Registrar::Elsewhere(client), face, store: None, server: None });
            }
            Some(config::Registry::Served(served)) => Some(served),
            None => None,
        };
        let store = Arc::new(open_store(config).await?);
        let server = match served {
            None => None,
            Some(served) => {
                let body = usize::try_from(served.max_body).unwrap_or(usize::MAX);
                let server = Server::bind(serve(&served.listen), body).await;
                let server = server.map_err(|error| {
                    Error::halt("could not serve the registry").because(error).hint(
                        "check `bind` and the files of `tls` in `[registry]`, and that nothing else listens there",
                    )
                })?;
                tracing::info!(address = %served.listen.bind, tls = served.listen.tls.is_some(), "registry open");
                Some(server)
            }
        };
        let bind = server.as_ref().and_then(Server::address);
        let tls = served.is_some_and(|served| served.listen.tls.is_some());
        let answered = server.as_ref().map(Server::answered).unwrap_or_default();
        let face = Face::Own { store: store.clone(), bind, tls, answered };
        Ok(Self { registrar: Registrar::Own(store.clone()), face, store: Some(store), server })
    }

    /// Serves until stopped, or until its log fails, which stops everything.
    pub(crate) fn serve(self, stop: &CancellationToken) -> (Option<Arc<Store>>, JoinHandle<Option<Error>>) {
        let Self { store, server, face, .. } = self;
        let (ours, stop) = (store.clone(), stop.clone());
        let serving = tokio::spawn(async move {
            if let Face::Elsewhere(watched) = &face {
                watched.watch(&stop).await;
            }
            let store = ours?;
            let serving = async {
                match server {
                    Some(server) => server.run(store.clone(), stop.clone()).await,
                    None => stop.cancelled().await,
                }
            };
            let failed = tokio::select! {
                () = serving => return None,
                failed = store.failed() => failed,
            };
            stop.cancel();
            Some(
                Error::halt("could not write the registry's log")
                    .because(failed)
                    .hint("the process must not go on after a failed write or sync: mend the disk, then start again"),
            )
        });
        (store, serving)
    }
}

/// Opens our own, which nobody else may have open.
pub(crate) async fn open_store(config: &Config) -> Result<Store> {
    let folder = layout::registry(config);
    let mut limits = Limits::default();
    if let Some(config::Registry::Served(served)) = &config.registry {
        limits.versions = usize::try_from(served.max_versions).unwrap_or(usize::MAX);
        limits.patience = served.compare_within;
    }
    Store::open(&folder, limits).await.map_err(|error| match error {
        schema_registry::Error::Log(error) => log_error(&folder, error),
        error => Error::halt(format!("could not open the registry in {}", folder.display()))
            .because(error)
            .hint("keep a copy of the folder; `highwater schemas import` fills a new one from an export"),
    })
}

pub(crate) fn client(at: Elsewhere) -> Result<Client> {
    Client::new(at).map_err(|error| {
        Error::halt("could not prepare for the registry").because(error).hint("check the file of certificates")
    })
}

pub(crate) fn elsewhere(external: &ExternalRegistry) -> Elsewhere {
    let password = external.password.as_ref().map(|password| password.expose().to_owned());
    Elsewhere {
        url: external.url.clone(),
        basic: external.user.clone().zip(password),
        bearer: external.token.as_ref().map(|token| token.expose().to_owned()),
        ca: external.ca.clone(),
        timeout: external.timeout,
    }
}
