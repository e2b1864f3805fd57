//! Where a server is, and how to get in.

use std::fmt;
use std::path::PathBuf;

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
