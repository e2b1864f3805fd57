//! Where a server is, and how to get in.

use std::fmt;
use std::path::PathBuf;

use config::{Postgres, PostgresHost, PostgresTls, Session};
use connector::{Action, Error, Result};
use tokio_postgres::Client;

use crate::control;
use crate::tls::Tls;

/// A server, a database and a role.
#[derive(Clone)]
pub struct Target {
    /// Name or address; a folder's path for a unix socket.
    pub host: String,
    /// TCP port, also part of a socket's name.
    pub port: u16,
    /// The role.
    pub user: String,
    /// The database.
    pub database: String,
    /// Never shown.
    pub password: Option<String>,
    /// Whether and how the line is encrypted.
    pub tls: Tls,
}

impl Target {
    /// The unix socket, if the host is a folder.
    pub(crate) fn socket(&self) -> Option<PathBuf> {
        self.host.starts_with('/').then(|| PathBuf::from(&self.host).join(format!(".s.PGSQL.{}", self.port)))
    }
}

/// The servers that a configuration names, of which one at a time is ours:
/// the first that can be reached and is as wanted. As libpq has it with several
/// hosts and `target_session_attrs`.
#[derive(Clone, Debug)]
pub struct Servers {
    /// One at least.
    targets: Vec<Target>,
    session: Session,
}

impl Servers {
    /// Of a configuration.
    pub fn of(config: &Postgres) -> Result<Self> {
        let tls = match &config.tls {
            PostgresTls::Disable => Tls::Disable,
            PostgresTls::VerifyFull { ca, cert, key } => {
                let identity = cert.as_deref().zip(key.as_deref());
                Tls::verify_full(ca.as_deref(), identity).map_err(|error| error.during("could not set up TLS"))?
            }
        };
        let target = |host: &PostgresHost| Target {
            host: host.name.clone(),
            port: host.port,
            user: config.user.clone(),
            database: config.database.clone(),
            password: config.password.as_ref().map(|password| password.expose().to_owned()),
            tls: tls.clone(),
        };
        Ok(Self { targets: config.hosts.iter().map(target).collect(), session: config.session })
    }

    /// The only one, where nothing more is asked of it than to be there.
    pub(crate) fn only(&self) -> Option<&Target> {
        self.targets.first().filter(|_| self.targets.len() == 1 && self.session == Session::Any)
    }

    /// Connects to the first that fits; the others' faults are told if none does.
    pub(crate) async fn connect(&self) -> Result<(Target, Client)> {
        if let Some(only) = self.only() {
            return Ok((only.clone(), control::connect(only).await?));
        }
        let rounds = match self.session {
            Session::PreferStandby => vec![Session::Standby, Session::Any],
            session => vec![session],
        };
        let mut why = Vec::new();
        let (mut may_pass, mut remedy) = (false, None);
        for session in rounds {
            why.clear();
            for target in &self.targets {
                let error = match control::connect(target).await {
                    Ok(client) => match lacks(&client, session).await {
                        Ok(None) => return Ok((target.clone(), client)),
                        Ok(Some(lacks)) => {
                            may_pass = true;
                            why.push(format!("{target} {lacks}"));
                            continue;
                        }
                        Err(error) => error,
                    },
                    // The others would say the same, and must not be hammered.
                    Err(error) if is_login(&error) => return Err(error),
                    Err(error) => error,
                };
                may_pass |= error.action() == Action::Retry;
                remedy = remedy.or(error.remedy().map(str::to_owned));
                why.push(error.chain());
            }
        }
        let action = if may_pass { Action::Retry } else { Action::Halt };
        let what = format!("none of the {} servers of `url` fits: {}", self.targets.len(), why.join("; "));
        let remedy = remedy.unwrap_or_else(|| "the first that fits is taken as soon as there is one".into());
        Err(Error::new(action, what).hint(remedy))
    }
}

/// What a server has not that is wanted of it.
async fn lacks(client: &Client, session: Session) -> Result<Option<&'static str>> {
    let ask = async |sql| Ok::<_, Error>(matches!(control::scalar(client, sql).await?.as_str(), "t" | "on"));
    let standby = async || ask("SELECT pg_is_in_recovery()").await;
    let read_only = async || ask("SHOW transaction_read_only").await;
    Ok(match session {
        Session::Any | Session::PreferStandby => None,
        Session::ReadWrite => read_only().await?.then_some("takes no writes, and read-write is wanted"),
        Session::ReadOnly => (!read_only().await?).then_some("takes writes, and read-only is wanted"),
        Session::Primary => standby().await?.then_some("is a standby, and a primary is wanted"),
        Session::Standby => (!standby().await?).then_some("is a primary, and a standby is wanted"),
    })
}

/// Whether the server was reached and did not let us in.
fn is_login(error: &Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<tokio_postgres::Error>());
    cause.and_then(tokio_postgres::Error::code).is_some_and(|code| code.code().starts_with("28"))
}

/// Without the password.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "postgres://{}@{}:{}/{}", self.user, self.host, self.port, self.database)
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
