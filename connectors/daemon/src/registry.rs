//! The registry as configured: opened, and served if that is asked for.

use std::sync::Arc;

use config::{Config, ExternalRegistry, RegistryRole, ServedRegistry};
use connector::{Error, Result};
use schema_registry::{Client, Elsewhere, Limits, Registrar, Role, Serve, Server, Store, TlsFiles, Token, User};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::exit::log_error;
use crate::layout;

/// Where sources register.
pub(crate) struct Registry {
    pub(crate) registrar: Registrar,
    /// Ours; None if another one is used.
    store: Option<Arc<Store>>,
    server: Option<Server>,
}

impl Registry {
    /// Opens it, and listens if it is to be served.
    pub(crate) async fn open(config: &Config) -> Result<Self> {
        let served = match &config.registry {
            Some(config::Registry::External(external)) => {
                let client = client(elsewhere(external))?;
                tracing::info!(url = client.url(), "registry elsewhere");
                return Ok(Self { registrar: Registrar::Elsewhere(Arc::new(client)), store: None, server: None });
            }
            Some(config::Registry::Served(served)) => Some(served),
            None => None,
        };
        let store = Arc::new(open_store(config).await?);
        let server = match served {
            None => None,
            Some(served) => {
                let server = Server::bind(serve(served)).await;
                let server = server.map_err(|error| {
                    Error::halt("could not serve the registry").because(error).hint(
                        "check `bind` and the files of `tls` in `[registry]`, and that nothing else listens there",
                    )
                })?;
                tracing::info!(address = %served.bind, tls = served.tls.is_some(), "registry open");
                Some(server)
            }
        };
        Ok(Self { registrar: Registrar::Own(store.clone()), store: Some(store), server })
    }

    /// Serves until stopped, or until its log fails, which stops everything.
    pub(crate) fn serve(self, stop: &CancellationToken) -> (Option<Arc<Store>>, JoinHandle<Option<Error>>) {
        let Self { store, server, .. } = self;
        let (ours, stop) = (store.clone(), stop.clone());
        let serving = tokio::spawn(async move {
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

fn serve(served: &ServedRegistry) -> Serve {
    let user = |(name, user): (&String, &config::RegistryUser)| User {
        name: name.clone(),
        hash: user.password.expose().into(),
        role: role(user.role),
    };
    Serve {
        bind: served.bind,
        tls: served.tls.as_ref().map(|tls| TlsFiles {
            cert: tls.cert.clone(),
            key: tls.key.clone(),
            client_ca: tls.client_ca.clone(),
            client_role: role(tls.client_role),
        }),
        users: served.users.iter().map(user).collect(),
        tokens: served.tokens.values().map(|token| Token::new(token.token.expose(), role(token.role))).collect(),
        body: usize::try_from(served.max_body).unwrap_or(usize::MAX),
        connections: usize::try_from(served.max_connections).unwrap_or(usize::MAX),
    }
}

fn role(role: RegistryRole) -> Role {
    match role {
        RegistryRole::Read => Role::Read,
        RegistryRole::Write => Role::Write,
        RegistryRole::Admin => Role::Admin,
    }
}
