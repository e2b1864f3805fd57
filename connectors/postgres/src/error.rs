//! What can go wrong between us and a server, and what is to be done about it.

use std::io;

use connector::{Action, Error};

/// An error of the wire.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The network.
    #[error("connection failed")]
    Io(#[from] io::Error),
    /// The server said no.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// What the server sent makes no sense.
    #[error("unexpected answer of the server: {0}")]
    Protocol(String),
    /// The certificate, or TLS at all.
    #[error("TLS failed: {0}")]
    Tls(String),
    /// Asked for and not there: nothing has been said in the clear.
    #[error("the server does not offer TLS")]
    NoTls,
    /// The login cannot be done safely, or at all.
    #[error("login failed: {0}")]
    Login(String),
}

/// PostgreSQL's ErrorResponse.
#[derive(Clone, Debug, Default, thiserror::Error)]
#[error("{severity}: {message} (SQLSTATE {code})")]
pub struct ServerError {
    /// ERROR, FATAL, PANIC.
    pub severity: String,
    /// SQLSTATE.
    pub code: String,
    /// The message.
    pub message: String,
    /// More, if there is.
    pub detail: Option<String>,
    /// The server's own hint.
    pub hint: Option<String>,
}

/// Whether an SQLSTATE may pass by itself.
pub(crate) fn may_pass(code: &str) -> bool {
    // Wrong password, unknown role or database, no privilege, wrong configuration
    // and what SQL does not allow stay as they are until a person acts.
    // Everything else (restart, recovery, too many connections, in use) may pass.
    const STAYS: [&str; 9] = ["28", "3D", "42", "22", "0A", "3F", "2B", "0L", "F0"];
    !STAYS.iter().any(|class| code.starts_with(class)) && code != "55000"
}

impl WireError {
    /// With what was attempted.
    pub(crate) fn during(self, attempt: impl Into<String>) -> Error {
        let (action, hint) = match &self {
            WireError::Io(_) => (Action::Retry, None),
            // As poolers refuse what only a server knows; no server does so.
            WireError::Server(error) if error.message.contains("unsupported startup parameter") => {
                (Action::Halt, Some(POOLER.into()))
            }
            WireError::Server(error) if may_pass(&error.code) => (Action::Retry, error.hint.clone()),
            WireError::Server(error) => (Action::Halt, remedy(&error.code).map(str::to_owned).or(error.hint.clone())),
            WireError::Protocol(_) => {
                (Action::Halt, Some("is this a PostgreSQL server, and no pooler in between?".into()))
            }
            WireError::Tls(error) => (Action::Halt, Some(certificate_remedy(error).into())),
            WireError::NoTls => (Action::Halt, Some(NO_TLS.into())),
            WireError::Login(_) => (Action::Halt, Some("check `password` of the source".into())),
        };
        let error = Error::new(action, attempt).because(self);
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

const POOLER: &str =
    "a pooler (pgbouncer) does not carry replication: `url` of the source must name the server itself, host and port";
const NO_TLS: &str = "set ssl = on at the server, with a certificate; tls = \"disable\" only where nobody listens";

/// An alert is the server's word about what we showed it; all else is about
/// what it showed us.
fn certificate_remedy(error: &str) -> &'static str {
    if error.contains("alert") {
        "check `cert` and `key` of the source: the server must know who signed them"
    } else {
        "check the name in the url, and `ca` of the source: the server's certificate must be signed by it, be for \
         this name, and not have expired"
    }
}

/// What to do about an SQLSTATE.
pub(crate) fn remedy(code: &str) -> Option<&'static str> {
    Some(match code {
        "28P01" => "the password is wrong: set `password` of the source, e.g. password = { env = \"…\" }",
        "28000" => "the role is unknown, may not log in, lacks REPLICATION, or pg_hba.conf has no line for it",
        "3D000" => "the database in the source's url does not exist",
        "42501" => "the role lacks a privilege: `highwater check --sql` prints what to grant",
        _ => return None,
    })
}

/// The same for the control connection.
pub(crate) fn control_failed(error: tokio_postgres::Error, attempt: impl Into<String>) -> Error {
    let code = error.code().map(|code| code.code().to_owned());
    let (action, hint) = match &code {
        Some(code) if !may_pass(code) => (Action::Halt, remedy(code)),
        Some(_) => (Action::Retry, None),
        None => {
            // The crate tells a refused certificate only in its causes.
            let mut text = String::new();
            let mut cause = std::error::Error::source(&error);
            while let Some(error) = cause {
                text.push_str(&error.to_string());
                cause = error.source();
            }
            if text.contains("certificate") || text.contains("fatal alert") {
                (Action::Halt, Some(certificate_remedy(&text)))
            } else if text.contains("server does not support TLS") {
                (Action::Halt, Some(NO_TLS))
            } else if error.to_string().contains("password missing") {
                (Action::Halt, Some("set `password` of the source, e.g. password = { env = \"…\" }"))
            } else {
                (Action::Retry, Some("is the server up, and does it listen at the host and port of `url`?"))
            }
        }
    };
    let error = Error::new(action, attempt).because(error);
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}
