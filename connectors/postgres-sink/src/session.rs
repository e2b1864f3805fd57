//! A session with the warehouse: connected, verified, with settings pinned.

use std::path::Path;
use std::time::Duration;

use config::{PostgresServer, PostgresTls};
use connector::{Error, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tokio_postgres::config::{SslMode, TargetSessionAttrs};
use tokio_postgres::{Client, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::error::failed;

/// Settings that decide how values are read, and how long anything may wait:
/// the same whatever the role or the database has. A session that stands still
/// in a transaction is ended, so that a stopped process holds no lock for long.
const SETTINGS: &str = "SET DateStyle = 'ISO, MDY'; SET IntervalStyle = 'iso_8601'; SET TimeZone = 'UTC';
    SET bytea_output = 'hex'; SET extra_float_digits = 1; SET lc_monetary = 'C'; SET xmloption = 'content';
    SET standard_conforming_strings = on; SET statement_timeout = 0; SET lock_timeout = '10s';
    SET idle_in_transaction_session_timeout = '30s'; SET synchronous_commit = on;
    SET default_transaction_isolation = 'read committed'; SET default_transaction_read_only = off;
    SET client_min_messages = warning";

/// Connects. The connection's task ends with the client.
pub(crate) async fn connect(server: &PostgresServer) -> Result<Client> {
    let mut config = tokio_postgres::Config::new();
    config.user(&server.user).dbname(&server.database).application_name("highwater");
    config.connect_timeout(Duration::from_secs(10));
    for host in &server.hosts {
        config.host(host.name.trim_matches(['[', ']'])).port(host.port);
    }
    // Of several it can only be one that takes writes.
    if server.hosts.len() > 1 {
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    }
    config.keepalives_idle(Duration::from_secs(15)).tcp_user_timeout(Duration::from_secs(30));
    if let Some(password) = &server.password {
        config.password(password.expose());
    }
    let attempt = || format!("could not connect to {}", name(server));
    let failed = |error| failed(error, attempt());
    let client = match &server.tls {
        PostgresTls::Disable => {
            config.ssl_mode(SslMode::Disable);
            let (client, connection) = config.connect(NoTls).await.map_err(failed)?;
            drop(tokio::spawn(async move { drop(connection.await) }));
            client
        }
        PostgresTls::VerifyFull { ca, cert, key } => {
            config.ssl_mode(SslMode::Require);
            let tls = verify_full(ca.as_deref(), cert.as_deref().zip(key.as_deref()))?;
            let (client, connection) = config.connect(MakeRustlsConnect::new(tls)).await.map_err(failed)?;
            drop(tokio::spawn(async move { drop(connection.await) }));
            client
        }
    };
    client.batch_execute(SETTINGS).await.map_err(failed)?;
    Ok(client)
}

/// Without the password.
pub(crate) fn name(server: &PostgresServer) -> String {
    let hosts: Vec<String> = server.hosts.iter().map(ToString::to_string).collect();
    format!("postgres://{}@{}/{}", server.user, hosts.join(","), server.database)
}

/// Verifies against `ca`, or the machine's own roots.
fn verify_full(ca: Option<&Path>, identity: Option<(&Path, &Path)>) -> Result<ClientConfig> {
    let broken = |path: &Path, error: &dyn std::fmt::Display| {
        Error::halt(format!("{} cannot be used for TLS: {error}", path.display()))
            .hint("check `ca`, `cert` and `key` of the sink")
    };
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            for certificate in CertificateDer::pem_file_iter(path).map_err(|error| broken(path, &error))? {
                let certificate = certificate.map_err(|error| broken(path, &error))?;
                roots.add(certificate).map_err(|error| broken(path, &error))?;
            }
            if roots.is_empty() {
                return Err(broken(path, &"it holds no certificate"));
            }
        }
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
    }
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::halt("could not set up TLS").because(error))?
        .with_root_certificates(roots);
    let Some((certificate, key)) = identity else { return Ok(builder.with_no_client_auth()) };
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(certificate).map_err(|error| broken(certificate, &error))?.collect();
    let chain = chain.map_err(|error| broken(certificate, &error))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| broken(key, &error))?;
    builder.with_client_auth_cert(chain, private).map_err(|error| broken(certificate, &error))
}
