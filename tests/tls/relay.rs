//! Somebody in between, with a certificate that everybody trusts: reads along,
//! and hands on what it hears.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// Between whoever comes to its port and the server; with the certificate `relay` of the folder.
pub(crate) async fn relay(authority: &Path, server: u16) -> u16 {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let chain = CertificateDer::pem_file_iter(authority.join("relay.pem")).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(authority.join("relay.key")).unwrap();
    let ours = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority.join("ca.pem")).unwrap()).unwrap();
    let theirs = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (ours, theirs) = (TlsAcceptor::from(Arc::new(ours)), TlsConnector::from(Arc::new(theirs)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let (ours, theirs) = (ours.clone(), theirs.clone());
            tokio::spawn(async move {
                // Whoever hangs up has heard enough.
                let _ = hand_on(client, server, ours, theirs).await;
            });
        }
    });
    port
}

async fn hand_on(mut client: TcpStream, server: u16, ours: TlsAcceptor, theirs: TlsConnector) -> std::io::Result<()> {
    let mut asked = [0; 8];
    client.read_exact(&mut asked).await?;
    assert_eq!(asked, SSL_REQUEST);
    client.write_all(b"S").await?;
    let mut client = ours.accept(client).await?;
    let mut server = TcpStream::connect(("127.0.0.1", server)).await?;
    server.write_all(&SSL_REQUEST).await?;
    let mut answer = [0; 1];
    server.read_exact(&mut answer).await?;
    assert_eq!(answer, *b"S");
    let mut server = theirs.connect(ServerName::try_from("localhost").unwrap(), server).await?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await.map(drop)
}
