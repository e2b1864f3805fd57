//! What can go wrong in the registry, and what it refuses.

use std::fmt;
use std::path::PathBuf;

/// Why a request is refused, by Confluent's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the numbers' table is in docs/registry.md")]
pub enum Code {
    SubjectNotFound = 40401,
    VersionNotFound = 40402,
    SchemaNotFound = 40403,
    SubjectSoftDeleted = 40404,
    SubjectNotSoftDeleted = 40405,
    VersionSoftDeleted = 40406,
    VersionNotSoftDeleted = 40407,
    LevelNotConfigured = 40408,
    ModeNotConfigured = 40409,
    Incompatible = 40901,
    InvalidSchema = 42201,
    InvalidVersion = 42202,
    InvalidLevel = 42203,
    InvalidMode = 42204,
    NotPermitted = 42205,
    ReferenceExists = 42206,
    InvalidSubject = 42208,
    TooLarge = 42209,
    InvalidRules = 42210,
    ContextNotEmpty = 42211,
    TooCostly = 422,
    Full = 429,
}

/// A request that is refused: nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why, for programs.
    pub code: Code,
    /// Why, for people.
    pub message: String,
}

impl Refusal {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}

/// An error of the registry.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request cannot be granted.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// An entry of the registry's log does not read back.
    #[error("registry in {} cannot be read: {what}", .folder.display())]
    Unreadable {
        /// Its folder.
        folder: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// A file of the registry's own.
    #[error("could not {what} {}", .path.display())]
    File {
        /// The operation.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The registry's log.
    #[error("registry's log failed")]
    Log(#[from] storage::Error),
    /// An external registry gives no answer, or none that can be used.
    #[error("registry at {url} cannot be reached")]
    Unreachable {
        /// Where it is, without secrets.
        url: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An external registry has refused.
    #[error("registry at {url} answered {status}, code {code}: {message}")]
    Answered {
        /// Where it is, without secrets.
        url: String,
        /// HTTP's status.
        status: u16,
        /// Its own code.
        code: i64,
        /// Its words.
        message: String,
    },
    /// TLS or an address that cannot be used.
    #[error("{0}")]
    Settings(String),
    /// The registry has been closed.
    #[error("registry is closed")]
    Closed,
}

/// With the registry's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error with all its causes.
pub fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}
