//! The control connection: tokio-postgres, for everything that is asked and not streamed.

use std::time::Duration;

use connector::{Error, Result};
use tokio_postgres::{Client, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::connection::{LATER_SETTINGS, SETTINGS};
use crate::error::control_failed;
use crate::target::Target;
use crate::tls::Tls;

/// A server that takes the connection and says nothing is not waited for longer.
const LOGIN: Duration = Duration::from_secs(30);

/// Connects and pins the session's settings. The connection's task ends with the client.
pub(crate) async fn connect(target: &Target) -> Result<Client> {
    let late = |_| Error::retry(format!("could not connect to {target}: the server does not answer"));
    tokio::time::timeout(LOGIN, log_in(target)).await.map_err(late)?
}

async fn log_in(target: &Target) -> Result<Client> {
    let mut config = tokio_postgres::Config::new();
    config.user(&target.user).dbname(&target.database).port(target.port).application_name("highwater");
    config.host(target.host.trim_matches(['[', ']'])).connect_timeout(Duration::from_secs(10));
    if let Some(password) = &target.password {
        config.password(password);
    }
    let attempt = || format!("could not connect to {target}");
    let failed = |error| control_failed(error, attempt());
    let (client, task) = match &target.tls {
        Tls::Disable => {
            config.ssl_mode(tokio_postgres::config::SslMode::Disable);
            let (client, connection) = config.connect(NoTls).await.map_err(failed)?;
            (client, tokio::spawn(async move { drop(connection.await) }))
        }
        Tls::VerifyFull(tls) => {
            config.ssl_mode(tokio_postgres::config::SslMode::Require);
            let tls = MakeRustlsConnect::new((**tls).clone());
            let (client, connection) = config.connect(tls).await.map_err(failed)?;
            (client, tokio::spawn(async move { drop(connection.await) }))
        }
    };
    drop(task);
    let settings: Vec<String> = SETTINGS
        .iter()
        .filter(|(name, _)| *name != "client_encoding")
        .map(|(n, v)| format!("SET {n} = '{v}'"))
        .collect();
    let settings = format!("SET statement_timeout = 0; {LATER_SETTINGS}; {}", settings.join("; "));
    client.batch_execute(&settings).await.map_err(|error| control_failed(error, attempt()))?;
    Ok(client)
}

/// Whether nothing can be written there.
pub(crate) async fn is_standby(client: &Client) -> Result<bool> {
    Ok(scalar(client, "SELECT pg_is_in_recovery()").await? == "t")
}

/// One number of a one-row answer.
pub(crate) async fn scalar(client: &Client, sql: &str) -> Result<String> {
    let rows =
        client.simple_query(sql).await.map_err(|error| control_failed(error, format!("could not run {sql:?}")))?;
    rows.into_iter()
        .find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
            _ => None,
        })
        .ok_or_else(|| Error::retry(format!("{sql:?} answered nothing")))
}
