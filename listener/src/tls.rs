//! The certificate that is shown, and whose are asked for.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use crate::auth::Role;
use crate::{Error, Result};

/// Files of PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The certificate, with what leads to its root.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Who signs clients' certificates; a client with one needs no password.
    pub client_ca: Option<PathBuf>,
    /// What such a client may do.
    pub client_role: Role,
}

impl TlsFiles {
    pub(crate) fn acceptor(&self) -> Result<TlsAcceptor> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let unusable =
            |path: &Path, why: &dyn std::fmt::Display| Error(format!("{} cannot be used: {why}", path.display()));
        let chain: Result<Vec<_>, _> =
            CertificateDer::pem_file_iter(&self.cert).map_err(|error| unusable(&self.cert, &error))?.collect();
        let chain = chain.map_err(|error| unusable(&self.cert, &error))?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| unusable(&self.key, &error))?;
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| Error(format!("TLS cannot be used: {error}")))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for root in CertificateDer::pem_file_iter(path).map_err(|error| unusable(path, &error))? {
                    let root = root.map_err(|error| unusable(path, &error))?;
                    roots.add(root).map_err(|error| unusable(path, &error))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .allow_unauthenticated()
                    .build()
                    .map_err(|error| unusable(path, &error))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let config = builder.with_single_cert(chain, key).map_err(|error| unusable(&self.cert, &error))?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}
