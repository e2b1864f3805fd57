//! What can go wrong in the registry.

/// An error of the registry.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is no Avro schema.
    #[error("schema of subject {subject:?} is not valid Avro")]
    InvalidSchema {
        /// Where it was to be registered.
        subject: String,
        /// Why.
        #[source]
        source: Box<apache_avro::Error>,
    },
    /// No more ids.
    #[error("schema ids are used up")]
    IdsUsedUp,
    /// An entry of the registry's log does not read back.
    #[error("registry entry {key:?} cannot be read")]
    Entry {
        /// Its key.
        key: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The registry's log.
    #[error("registry's log failed")]
    Log(#[from] storage::Error),
}

/// With the registry's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;
