//! Where sources register: here, or at a registry elsewhere.

use std::sync::Arc;

use crate::client::Client;
use crate::content::NewSchema;
use crate::error::Result;
use crate::registry::SchemaId;
use crate::store::Store;

/// Gives ids to schemas of our own making.
#[derive(Clone, Debug)]
pub enum Registrar {
    /// Our own registry.
    Own(Arc<Store>),
    /// Another one: ids are its own.
    Elsewhere(Arc<Client>),
}

impl Registrar {
    /// A schema's id, registered if it was not. May be repeated.
    pub async fn register(&self, subject: &str, text: &str) -> Result<SchemaId> {
        match self {
            Registrar::Own(store) => Ok(store.register(subject, text).await?.id),
            Registrar::Elsewhere(client) => client.register(subject, &NewSchema::avro(text)).await,
        }
    }
}
