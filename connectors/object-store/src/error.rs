//! What can go wrong at a store.
//!
//! All of it is tried again: a full disk, a missing bucket, a withdrawn right
//! are mended outside, without a restart, and the log keeps what waits. It is
//! loud in `status` meanwhile. Only what another writer or log left there halts.

use std::io::ErrorKind;

use connector::{Action, Error};

/// What to do about a name that is too long.
pub(crate) const RENAME: &str = "rename the table, or leave it out with `tables`";

/// With what was attempted.
pub(crate) fn failed(error: object_store::Error, attempt: impl Into<String>) -> Error {
    use object_store::Error as E;
    let hint = match &error {
        E::NotFound { .. } => Some("does the bucket or folder exist?"),
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => {
            Some("check the keys in `options` of the sink, and what they may do: list, get, put, delete")
        }
        E::Generic { .. } => Some("is the store reachable? check `url` and `options` of the sink"),
        _ => None,
    };
    let failed = Error::retry(attempt).because(error);
    match hint {
        Some(hint) => failed.hint(hint),
        None => failed,
    }
}

/// An error while one table's folder was written to: what may be of this folder
/// alone is said to be so, and concerns the table alone if it lasts. What is of
/// them all stands in the way of the manifests too, which come first.
pub(crate) fn of_table(error: Error, stream: &str) -> Error {
    let (mut denied, mut too_long, mut kind) = (false, false, None);
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        denied |= matches!(error.downcast_ref(), Some(object_store::Error::PermissionDenied { .. }));
        // S3's `KeyTooLongError`; the client hands on no code, only what was answered.
        too_long |= error.to_string().contains("<Code>KeyTooLong");
        kind = error.downcast_ref().map(std::io::Error::kind).or(kind);
        cause = error.source();
    }
    match kind {
        _ if error.action() != Action::Retry => error,
        Some(ErrorKind::InvalidFilename) => {
            error.hint(format!("its name is longer than a folder's may be here: {RENAME}")).of_stream(stream)
        }
        _ if too_long => {
            let hint = format!(
                "the names of its files are longer than the store takes: {RENAME}, or shorten the path in `url`"
            );
            error.hint(hint).of_stream(stream)
        }
        Some(ErrorKind::NotADirectory) => {
            error.hint("a file stands where a folder of the table is to be: take it away").of_stream(stream)
        }
        Some(ErrorKind::PermissionDenied) => error.of_stream(stream),
        _ if denied => error.of_stream(stream),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use object_store::aws::AmazonS3Builder;
    use object_store::path::Path;
    use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// What S3 answers to a key of 1,029 bytes.
    const TOO_LONG: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>KeyTooLongError</Code>\
        <Message>Your key is too long</Message><Size>1029</Size><MaxSizeAllowed>1024</MaxSizeAllowed>\
        <RequestId>7A0D868D37BA08C9</RequestId><HostId>4vRT</HostId></Error>";
    const OTHER: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>InvalidArgument</Code></Error>";

    #[tokio::test]
    async fn a_key_that_is_too_long_for_s3_is_of_its_table() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 1 << 16];
                let read = client.read(&mut request).await.unwrap();
                let is_long = request[..read].windows(7).any(|bytes| bytes == b"/lake/x");
                let body = if is_long { TOO_LONG } else { OTHER };
                let length = body.len();
                let head = format!(
                    "HTTP/1.1 400 Bad Request\r\nContent-Type: application/xml\r\nContent-Length: {length}\r\n\
                     Connection: close\r\n\r\n"
                );
                client.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
                client.shutdown().await.unwrap();
                // What is left of the request is taken, so that the answer is not lost with it.
                let _ = client.read_to_end(&mut request).await;
            }
        });
        let store = AmazonS3Builder::new()
            .with_bucket_name("lake")
            .with_region("us-east-1")
            .with_endpoint(format!("http://127.0.0.1:{port}"))
            .with_allow_http(true)
            .with_access_key_id("key")
            .with_secret_access_key("secret")
            .build()
            .unwrap();
        let path = Path::from("x".repeat(1_029));
        let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let put = store.put_opts(&path, "rows".into(), create).await.map(drop).unwrap_err();
        let parts = store.put_multipart(&path).await.map(drop).unwrap_err();
        for error in [put, parts] {
            let error = of_table(failed(error, "could not write"), "shop.public.t");
            assert_eq!(error.stream(), Some("shop.public.t"), "{}", error.chain());
            assert!(error.remedy().unwrap().contains("rename the table"), "{:?}", error.remedy());
        }
        let other = store.put(&Path::from("short"), "rows".into()).await.map(drop).unwrap_err();
        let other = of_table(failed(other, "could not write"), "shop.public.t");
        assert_eq!(other.stream(), None, "{}", other.chain());
    }
}
