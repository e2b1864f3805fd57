//! An Azure Blob Storage of the tests: azurite.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::azure::MicrosoftAzureBuilder;

use crate::{folder, free_port, root, until};

/// Azurite's own, known to all.
const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// A server; what it holds goes with its folder.
pub struct Azure {
    pub port: u16,
    child: Child,
}

impl Azure {
    /// On a port of its own, with the container `lake`.
    pub async fn start() -> Self {
        let port = free_port();
        let folder = folder(&format!("azure-{port}"));
        let log = std::fs::File::create(folder.join("log")).unwrap();
        // The server ends with our end of its pipe, however we end.
        let script = format!(
            "node '{}' --blobHost 127.0.0.1 --blobPort {port} --location '{}' --silent --skipApiVersionCheck \
             --disableTelemetry & cat >/dev/null; kill $!",
            root().join("target/servers/azurite/node_modules/azurite/dist/src/blob/main.js").display(),
            folder.display()
        );
        let child = Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        until(
            60,
            "azurite answers",
            || async move { tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() },
        )
        .await;
        let this = Self { port, child };
        this.make_container();
        this
    }

    /// Object stores have no call for it, so Azure's own signature is made by a
    /// few lines of Python.
    fn make_container(&self) {
        let script = format!(
            "import base64, hashlib, hmac, urllib.request, email.utils\n\
             date = email.utils.formatdate(usegmt=True)\n\
             text = 'PUT\\n\\n\\n\\n\\n\\n\\n\\n\\n\\n\\n\\nx-ms-date:' + date + '\\nx-ms-version:2023-11-03\\n/{ACCOUNT}/{ACCOUNT}/lake\\nrestype:container'\n\
             sign = base64.b64encode(hmac.new(base64.b64decode('{KEY}'), text.encode(), hashlib.sha256).digest()).decode()\n\
             request = urllib.request.Request('http://127.0.0.1:{}/{ACCOUNT}/lake?restype=container', method='PUT', headers={{\n\
             'x-ms-date': date, 'x-ms-version': '2023-11-03', 'Content-Length': '0', 'Authorization': 'SharedKey {ACCOUNT}:' + sign}})\n\
             print(urllib.request.urlopen(request).status)\n",
            self.port
        );
        let python = root().join("target/servers/python/bin/python");
        crate::must(Command::new(python).args(["-c", &script]));
    }

    /// Its options, as a sink's configuration has them; by `port`, if somebody stands between.
    pub fn options(&self, port: u16) -> String {
        format!(
            "{{ endpoint = \"http://127.0.0.1:{port}/{ACCOUNT}\", account_name = \"{ACCOUNT}\", account_key = \"{KEY}\" }}"
        )
    }

    /// To look into it.
    pub fn store(&self) -> Arc<dyn ObjectStore> {
        let builder = MicrosoftAzureBuilder::new()
            .with_container_name("lake")
            .with_account(ACCOUNT)
            .with_access_key(KEY)
            .with_endpoint(format!("http://127.0.0.1:{}/{ACCOUNT}", self.port))
            .with_allow_http(true);
        Arc::new(builder.build().unwrap())
    }
}

impl Drop for Azure {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
