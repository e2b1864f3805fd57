//! Users, tokens, certificates, and TLS.

use std::path::Path;
use std::process::{Command, Stdio};

use highwater_tests::{Daemon, folder, free_port, must, until};

use super::http::ask_with;
use super::{Registry, body};

const TOKEN: &str = "0123456789abcdef-token";

fn hash(folder: &Path, password: &str) -> String {
    let file = folder.join("password");
    std::fs::write(&file, password).unwrap();
    let mut command = Command::new(Daemon::binary());
    let hash = must(command.args(["schemas", "password"]).stdin(std::fs::File::open(file).unwrap()));
    assert!(hash.starts_with("$argon2id$"), "{hash}");
    hash.trim().to_owned()
}

fn people(folder: &Path) -> String {
    let token = folder.join("token");
    std::fs::write(&token, TOKEN).unwrap();
    must(Command::new("chmod").arg("600").arg(&token));
    format!(
        "[registry.users.ann]\npassword = \"{}\"\nrole = \"admin\"\n\
         [registry.users.bob]\npassword = \"{}\"\nrole = \"write\"\n\
         [registry.tokens.reader]\ntoken = {{ file = \"token\" }}\nrole = \"read\"\n",
        hash(folder, "ann's"),
        hash(folder, "bob's")
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_does_more_than_their_role_allows() {
    let folder = folder("registry-roles");
    let mut registry = Registry::start(&folder, &people(&folder)).await;
    let port = registry.port;
    // base64 of ann:ann's, bob:bob's, bob:wrong.
    let (ann, bob, wrong) = ("Basic YW5uOmFubidz", "Basic Ym9iOmJvYidz", "Basic Ym9iOndyb25n");
    let reader = format!("Bearer {TOKEN}");
    let ask = async |who: &str, method: &str, path: &str, text: &str| {
        let headers = [("Authorization", who)];
        ask_with(port, method, path, if who.is_empty() { &[] } else { &headers }, text).await
    };
    let int = body(r#""int""#);
    for (who, status) in [("", 401), (wrong, 401), ("Bearer nonsense", 401), (&reader, 200), (bob, 200), (ann, 200)] {
        let answer = ask(who, "GET", "/subjects", "").await;
        assert_eq!(answer.status, status, "{who}");
        assert_eq!(answer.header("www-authenticate").is_some(), status == 401);
    }
    assert_eq!(ask(&reader, "POST", "/subjects/s/versions", &int).await.status, 403);
    assert_eq!(ask(bob, "POST", "/subjects/s/versions", &int).await.status, 200);
    assert_eq!(ask(&reader, "POST", "/subjects/s", &int).await.status, 200);
    assert_eq!(ask(&reader, "DELETE", "/subjects/s", "").await.status, 403);
    assert_eq!(ask(bob, "PUT", "/config", r#"{"compatibility":"NONE"}"#).await.status, 403);
    assert_eq!(ask(bob, "DELETE", "/subjects/s", "").await.status, 200);
    assert_eq!(ask(bob, "DELETE", "/subjects/s?permanent=true", "").await.status, 403);
    assert_eq!(ask(ann, "DELETE", "/subjects/s?permanent=true", "").await.status, 200);
    assert_eq!(ask(ann, "PUT", "/config", r#"{"compatibility":"NONE"}"#).await.status, 200);
    registry.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn other_addresses_need_tls_and_authentication() {
    let folder = folder("registry-tls");
    let port = free_port();
    let open = format!("[registry]\nbind = \"0.0.0.0:{port}\"\n");
    let (code, _, stderr) = Daemon::new(&folder, &open).run(&["run"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("registry.bind: is not this machine alone: it needs TLS"), "{stderr}");

    let script = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=ca \
         -keyout ca.key -out ca.pem -addext basicConstraints=critical,CA:TRUE && \
         for who in server client; do \
         openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=$who -keyout $who.key -out $who.csr && \
         printf 'subjectAltName=DNS:localhost,IP:127.0.0.1' > ext && \
         openssl x509 -req -in $who.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out $who.pem; done";
    must(Command::new("sh").args(["-ec", script]).current_dir(&folder).stderr(Stdio::null()));
    let config = format!(
        "{open}tls = {{ cert = \"server.pem\", key = \"server.key\", client_ca = \"ca.pem\", client_role = \"write\" }}\n{}",
        people(&folder)
    );
    let mut daemon = Daemon::new(&folder, &config);
    daemon.start(&["run"], None);
    until(20, "it listens", || async move { tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() }).await;
    let url = format!("https://localhost:{port}");
    let curl = |path: &str, words: &[&str]| {
        let mut command = Command::new("curl");
        command.args(["-s", "--cacert", "ca.pem", "-o", "out", "-w", "%{http_code}"]).args(words);
        let code = command.arg(format!("{url}{path}")).current_dir(&folder).output().unwrap();
        String::from_utf8_lossy(&code.stdout).into_owned()
    };
    assert_eq!(curl("/subjects", &[]), "401");
    assert_eq!(curl("/subjects", &["-u", "ann:ann's"]), "200");
    let certified = ["--cert", "client.pem", "--key", "client.key"];
    assert_eq!(curl("/subjects", &certified), "200");
    let put = ["-X", "PUT", "-d", r#"{"compatibility":"NONE"}"#, "-H", "Content-Type: application/json"];
    assert_eq!(curl("/config", &[&certified[..], &put[..]].concat()), "403", "its role is write");
    assert_eq!(curl("/subjects", &["-k", "--http0.9"]), "401");
    let plain = Command::new("curl").args(["-s", &format!("http://localhost:{port}/subjects")]).output().unwrap();
    assert!(!plain.status.success(), "not in the clear");

    // Our own client, with what it needs to see.
    std::fs::write(folder.join("dump"), "{\"subject\":\"s\",\"version\":3,\"id\":9,\"schema\":\"\\\"int\\\"\"}\n")
        .unwrap();
    let import =
        ["schemas", "import", "dump", "--to", &url, "--ca", "ca.pem", "--user", "ann", "--password-file", "ann"];
    std::fs::write(folder.join("ann"), "ann's\n").unwrap();
    let (code, out, stderr) = daemon.run(&import);
    assert_eq!((code, out.as_str()), (0, "1 versions, 0 settings\n"), "{stderr}");
    assert_eq!(curl("/subjects/s/versions/3", &["-u", "ann:ann's"]), "200");
    std::fs::write(folder.join("ann"), "wrong\n").unwrap();
    let (code, _, stderr) = daemon.run(&import);
    assert_eq!(code, 1);
    assert!(stderr.contains("401"), "{stderr}");
    daemon.signal("TERM");
    assert_eq!(daemon.wait(std::time::Duration::from_secs(5)).code, Some(0));
}
