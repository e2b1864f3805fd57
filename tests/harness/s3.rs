//! An S3 of the tests: moto, which tells conditional writes right.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::aws::AmazonS3Builder;

use crate::{folder, free_port, root, until};

/// A server that can be stopped and started again on its port. What it holds
/// goes with it.
pub struct S3 {
    pub port: u16,
    child: Option<Child>,
}

impl S3 {
    /// On a port of its own.
    pub async fn start() -> Self {
        let mut this = Self { port: free_port(), child: None };
        this.up().await;
        this
    }

    /// Starts it, with the bucket `lake`.
    pub async fn up(&mut self) {
        let log = std::fs::File::create(folder(&format!("s3-{}", self.port)).join("log")).unwrap();
        // The server ends with our end of its pipe, however we end.
        let script = format!(
            "'{}' -H 127.0.0.1 -p {} & cat >/dev/null; kill $!",
            root().join("target/servers/python/bin/moto_server").display(),
            self.port
        );
        let child =
            Command::new("sh").args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log).spawn();
        self.child = Some(child.unwrap());
        let port = self.port;
        until(30, "moto answers", || async move { tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() })
            .await;
        let made = Command::new("curl").args(["-sf", "-X", "PUT", &format!("http://127.0.0.1:{port}/lake")]).status();
        assert!(made.unwrap().success(), "the bucket is made");
    }

    /// Stops it.
    pub fn down(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.stdin.take());
            let _ = child.wait();
        }
    }

    /// Its options, as a sink's configuration has them.
    pub fn options(&self) -> String {
        self.options_by(self.port)
    }

    /// By another port, where somebody stands between.
    pub fn options_by(&self, port: u16) -> String {
        format!(
            "{{ endpoint = \"http://127.0.0.1:{port}\", region = \"us-east-1\", access_key_id = \"test\", secret_access_key = \"test\" }}"
        )
    }

    /// To look into it.
    pub fn store(&self) -> Arc<dyn ObjectStore> {
        let builder = AmazonS3Builder::new()
            .with_bucket_name("lake")
            .with_region("us-east-1")
            .with_endpoint(format!("http://127.0.0.1:{}", self.port))
            .with_access_key_id("test")
            .with_secret_access_key("test")
            .with_allow_http(true);
        Arc::new(builder.build().unwrap())
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.down();
    }
}
