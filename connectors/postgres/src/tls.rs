//! TLS by rustls: verified by default, and what SCRAM binds itself to.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use sha2::{Digest, Sha256, Sha384, Sha512};

use crate::error::WireError;

/// Whether the line is encrypted.
#[derive(Clone)]
pub enum Tls {
    /// In the clear: for loopback and unix sockets.
    Disable,
    /// The certificate must be valid and for this name.
    VerifyFull(Arc<ClientConfig>),
}

impl Tls {
    /// Verifies against `ca`, or the machine's own roots; shows `identity`
    /// (certificate and key files) to a server that asks.
    pub fn verify_full(ca: Option<&Path>, identity: Option<(&Path, &Path)>) -> Result<Self, WireError> {
        let broken = |path: &Path, error: &dyn std::fmt::Display| {
            WireError::Tls(format!("{} cannot be used: {error}", path.display()))
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
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| WireError::Tls(error.to_string()))?
            .with_root_certificates(roots);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain: Result<Vec<_>, _> =
                    CertificateDer::pem_file_iter(certificate).map_err(|e| broken(certificate, &e))?.collect();
                let chain = chain.map_err(|error| broken(certificate, &error))?;
                let private = PrivateKeyDer::from_pem_file(key).map_err(|error| broken(key, &error))?;
                builder.with_client_auth_cert(chain, private).map_err(|error| broken(certificate, &error))?
            }
        };
        Ok(Tls::VerifyFull(Arc::new(config)))
    }
}

/// RFC 5929's tls-server-end-point: the certificate's hash, by the hash of its
/// own signature. None where the signature has no hash of that kind.
pub(crate) fn server_end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    // Certificate ::= SEQUENCE { tbs, SEQUENCE { OID, … }, signature }
    let (_, body, _) = element(certificate)?;
    let (_, _, rest) = element(body)?;
    let (_, algorithm, _) = element(rest)?;
    let (tag, oid, _) = element(algorithm)?;
    if tag != 6 {
        return None;
    }
    const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
    const ECDSA: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04];
    if let Some(kind) = oid.strip_prefix(RSA) {
        match kind {
            // MD5 and SHA-1 are replaced by SHA-256, says the RFC.
            [4 | 5 | 11] => Some(Sha256::digest(certificate).to_vec()),
            [12] => Some(Sha384::digest(certificate).to_vec()),
            [13] => Some(Sha512::digest(certificate).to_vec()),
            _ => None,
        }
    } else {
        match oid.strip_prefix(ECDSA)? {
            [1] | [3, 2] => Some(Sha256::digest(certificate).to_vec()),
            [3, 3] => Some(Sha384::digest(certificate).to_vec()),
            [3, 4] => Some(Sha512::digest(certificate).to_vec()),
            _ => None,
        }
    }
}

/// A DER element: its tag, its content, what follows.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        if digits.len() > 4 {
            return None;
        }
        (digits.iter().fold(0, |n, &d| n << 8 | usize::from(d)), rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}
