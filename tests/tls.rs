//! Logins: encrypted, bound to the certificate, and what is refused; nothing
//! secret is ever told.

mod relay;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use highwater_tests::{Daemon, Ended, Postgres, S3, Server, folder, landed, must};

use crate::spine::local;

/// What must be nowhere.
const CANARY: &str = "canary-in-the-mine-7f3a";

/// Certificates of a test's own authority.
struct Authority(PathBuf);

impl Authority {
    fn new(folder: &Path) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let this = Self(folder.into());
        this.openssl(&format!(
            "req -x509 {KEY} -keyout ca.key -out ca.pem -days 10 -subj /CN=authority -addext keyUsage=keyCertSign"
        ));
        this
    }

    fn openssl(&self, words: &str) {
        must(Command::new("openssl").current_dir(&self.0).args(words.split(' ')));
    }

    /// `<name>.pem` and `<name>.key`, for the subject alternative names.
    fn issue(&self, name: &str, subject: &str, names: &str, days: i32) {
        std::fs::write(self.0.join("extensions"), format!("subjectAltName={names}\n")).unwrap();
        self.openssl(&format!("req -new {KEY} -keyout {name}.key -out {name}.csr -subj /CN={subject}"));
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days {days} -extfile extensions -out {name}.pem"
        ));
    }

    /// As a server wants its key: its own, and nobody else's.
    fn give_to_server(&self, name: &str) {
        let key = self.0.join(format!("{name}.key"));
        must(Command::new("chmod").arg("600").arg(&key));
        if must(Command::new("id").arg("-u")).trim() == "0" {
            must(Command::new("chown").arg("postgres").arg(&key));
        }
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";

const HBA: &str = "local all md5er md5
local all all trust
host all postgres 127.0.0.1/32 trust
hostssl all certed all cert
hostssl all doubly all scram-sha-256 clientcert=verify-full
hostssl all clear all password
host all md5er all md5
hostssl all highwater all scram-sha-256
";

/// A server that speaks TLS with a certificate for `localhost`, and roles of every kind.
struct Guarded {
    postgres: Postgres,
    authority: Authority,
    folder: PathBuf,
}

impl Guarded {
    async fn new(version: u32, name: &str) -> Self {
        let folder = folder(&format!("tls-{name}-{version}"));
        let authority = Authority::new(&folder.join("authority"));
        for (name, names, days) in
            [("server", "DNS:localhost", 10), ("other", "DNS:db.example", 10), ("old", "DNS:localhost", -1)]
        {
            authority.issue(name, name, names, days);
            authority.give_to_server(name);
        }
        authority.issue("certed", "certed", "DNS:client", 10);
        authority.issue("doubly", "doubly", "DNS:client", 10);
        let settings = format!(
            "ssl = on\nssl_cert_file = '{}'\nssl_key_file = '{}'\nssl_ca_file = '{}'\nlog_connections = on",
            authority.path("server.pem"),
            authority.path("server.key"),
            authority.path("ca.pem")
        );
        let server = tokio::task::spawn_blocking(move || Server::start(version, &settings)).await.unwrap();
        let postgres = Postgres::on(Arc::new(server)).await;
        let client = postgres.client().await;
        client
            .batch_execute(&format!(
                "ALTER ROLE highwater PASSWORD '{CANARY}';
                 CREATE ROLE certed LOGIN REPLICATION; CREATE ROLE doubly LOGIN REPLICATION PASSWORD '{CANARY}';
                 CREATE ROLE clear LOGIN REPLICATION PASSWORD '{CANARY}';
                 SET password_encryption = 'md5'; CREATE ROLE md5er LOGIN REPLICATION PASSWORD '{CANARY}';
                 CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2);
                 GRANT SELECT ON t TO certed, doubly, clear, md5er"
            ))
            .await
            .unwrap();
        postgres.publish("highwater_shop", "t").await;
        let this = Self { postgres, authority, folder };
        std::fs::write(this.postgres.server.data.join("pg_hba.conf"), HBA).unwrap();
        this.set("").await;
        this
    }

    /// Other settings, at once.
    async fn set(&self, settings: &str) {
        let conf = self.postgres.server.data.join("postgresql.auto.conf");
        std::fs::write(conf, settings).unwrap();
        let admin = self.postgres.server.connect("postgres").await;
        let loaded = "SELECT pg_conf_load_time()";
        let before: std::time::SystemTime = admin.query_one(loaded, &[]).await.unwrap().get(0);
        admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
        highwater_tests::until(10, "the settings are read again", || async {
            admin.query_one(loaded, &[]).await.unwrap().get::<_, std::time::SystemTime>(0) > before
        })
        .await;
    }

    async fn shows(&self, certificate: &str) {
        let (pem, key) = (format!("{certificate}.pem"), format!("{certificate}.key"));
        let settings = [("ssl_cert_file", pem), ("ssl_key_file", key)];
        let settings: Vec<String> =
            settings.iter().map(|(name, file)| format!("{name} = '{}'\n", self.authority.path(file))).collect();
        self.set(&settings.concat()).await;
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.postgres.server.data.join("server.log")).unwrap()
    }

    /// A daemon of the role, in a folder of its own.
    fn daemon(&self, role: &str, more: &str) -> Daemon {
        let folder = self.folder.join(role);
        std::fs::create_dir_all(folder.join("lake")).unwrap();
        secret_file(&folder.join("password"), CANARY);
        let config = format!(
            "[sources.shop]\ntype = \"postgres\"\nurl = \"postgres://{role}@localhost:{}/{}\"\n{more}\nslot = \"hw_{role}\"\n\
             [sinks.lake]\ntype = \"object-store\"\nfrom = [\"shop\"]\nurl = \"file://{}\"\ncut = {{ age = \"100ms\" }}\n",
            self.postgres.server.port,
            self.postgres.database,
            folder.join("lake").display()
        );
        let mut daemon = Daemon::new(&folder, &config);
        daemon.environment = vec![("SHOP_PASSWORD".into(), CANARY.into()), ("HIGHWATER_LOG".into(), "trace".into())];
        daemon
    }

    fn verified(&self) -> String {
        format!("tls = \"verify-full\"\nca = \"{}\"", self.authority.path("ca.pem"))
    }

    /// It gets in, and the rows land.
    async fn gets_in(&self, role: &str, more: &str) -> Ended {
        let ended = run(&mut self.daemon(role, more));
        assert_eq!(ended.code, Some(0), "{role} {more}: {}", tail(&ended.stderr));
        let events = landed(&local(&self.folder.join(role).join("lake")), "shop.public.t").await;
        assert_eq!(events.len(), 2, "{role}");
        nothing_secret(&self.folder.join(role), &ended.stderr);
        ended
    }

    /// It does not, and says why.
    fn is_refused(&self, role: &str, more: &str, words: &[&str]) -> Ended {
        let ended = run(&mut self.daemon(role, more));
        assert_eq!(ended.code, Some(1), "{role} {more}: {}", tail(&ended.stderr));
        let last = tail(&ended.stderr);
        for word in words.iter().chain(&["what to do"]) {
            assert!(last.contains(word), "{word:?} is not in:\n{last}");
        }
        nothing_secret(&self.folder.join(role), &ended.stderr);
        ended
    }
}

/// Nobody else may read it, or it is not taken.
fn secret_file(path: &Path, secret: &str) {
    std::fs::write(path, secret).unwrap();
    must(Command::new("chmod").arg("600").arg(path));
}

fn run(daemon: &mut Daemon) -> Ended {
    daemon.start(&["run", "--until-caught-up"], None);
    daemon.wait(Duration::from_secs(30))
}

fn tail(stderr: &str) -> String {
    let lines: Vec<&str> = stderr.lines().collect();
    lines[lines.len().saturating_sub(4)..].join("\n")
}

/// Neither in what was said nor in what was written, but for where it was put.
fn nothing_secret(folder: &Path, stderr: &str) {
    assert!(!stderr.contains(CANARY), "stderr tells a secret");
    let output = Command::new("grep").args(["-rl", "--exclude=password", CANARY]).arg(folder).output().unwrap();
    let found = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(found, "", "files tell a secret");
}

const PASSWORD: &str = "password = { env = \"SHOP_PASSWORD\" }";

async fn scram_bound_to_the_certificate(version: u32) {
    let guarded = Guarded::new(version, "plus").await;
    let ended = guarded.gets_in("highwater", &format!("{}\n{PASSWORD}", guarded.verified())).await;
    let logins: Vec<&str> = ended.stderr.lines().filter(|line| line.contains("logging in")).collect();
    assert!(!logins.is_empty(), "the login is told at debug");
    for login in logins {
        assert!(login.contains("SCRAM-SHA-256-PLUS"), "{login}");
    }
    // Each connection of the role, for control and for replication, is encrypted.
    let log = guarded.log();
    let authorised: Vec<&str> = log.lines().filter(|line| line.contains("authorized: user=highwater")).collect();
    assert!(authorised.iter().any(|line| line.contains("replication connection authorized")), "{log}");
    assert!(authorised.iter().any(|line| line.contains("  connection authorized")), "{log}");
    for line in authorised {
        assert!(line.contains("SSL enabled (protocol=TLSv1.3"), "{line}");
    }
    let methods = log.lines().filter(|line| line.contains("identity=\"highwater\"")).collect::<Vec<_>>();
    assert!(!methods.is_empty() && methods.iter().all(|line| line.contains("method=scram-sha-256")), "{methods:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_is_scram_bound_to_the_verified_certificate_at_17() {
    scram_bound_to_the_certificate(17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_is_scram_bound_to_the_verified_certificate_at_15() {
    scram_bound_to_the_certificate(15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_does_not_fit_is_refused_and_so_is_a_line_without() {
    let guarded = Guarded::new(17, "refused").await;
    let verified = format!("{}\n{PASSWORD}", guarded.verified());
    let stranger = Authority::new(&guarded.folder.join("stranger"));
    let wrong = format!("tls = \"verify-full\"\nca = \"{}\"\n{PASSWORD}", stranger.path("ca.pem"));
    guarded.is_refused("highwater", &wrong, &["invalid peer certificate", "`ca`"]);
    guarded.shows("other").await;
    guarded.is_refused("highwater", &verified, &["not valid for name", "db.example"]);
    guarded.shows("old").await;
    guarded.is_refused("highwater", &verified, &["expired"]);
    guarded.set("ssl = off\n").await;
    guarded.is_refused("highwater", &verified, &["TLS", "ssl = on"]);
    assert!(!guarded.log().contains("user=highwater"), "the role has never come so far as to name itself");
    guarded.shows("server").await;
    guarded.gets_in("highwater", &verified).await;
    // Of several hosts each is checked for its own name.
    let port = guarded.postgres.server.port;
    let of_hosts = |hosts: String| {
        let daemon = guarded.daemon("highwater", &verified);
        let config = std::fs::read_to_string(daemon.folder.join("highwater.toml")).unwrap();
        let mut several =
            Daemon::new(&daemon.folder, &config.replace(&format!("@localhost:{port}/"), &format!("@{hosts}/")));
        several.environment = daemon.environment.clone();
        run(&mut several)
    };
    let ended = of_hosts(format!("127.0.0.1:{port},localhost:{port}"));
    assert_eq!(ended.code, Some(0), "{}", tail(&ended.stderr));
    let ended = of_hosts(format!("127.0.0.1:{port},127.0.0.1:{port}"));
    assert_eq!(ended.code, Some(1), "{}", tail(&ended.stderr));
    for word in ["none of the 2 servers", "not valid for name", "what to do"] {
        assert!(tail(&ended.stderr).contains(word), "{}", tail(&ended.stderr));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_is_refused_though_its_certificate_is_good_on_every_kind_of_connection() {
    let guarded = Guarded::new(17, "relay").await;
    guarded.authority.issue("relay", "relay", "DNS:localhost", 10);
    let server = guarded.postgres.server.port;
    let port = relay::relay(&guarded.authority.0, server).await;
    let relayed = |role: &str| {
        let daemon = guarded.daemon(role, &format!("{}\n{PASSWORD}", guarded.verified()));
        let config = std::fs::read_to_string(daemon.folder.join("highwater.toml")).unwrap();
        let mut relayed = Daemon::new(&daemon.folder, &config.replace(&format!(":{server}/"), &format!(":{port}/")));
        relayed.environment = daemon.environment.clone();
        relayed
    };
    // Who sends the password in the clear does not notice: the relay works.
    let ended = run(&mut relayed("clear"));
    assert_eq!(ended.code, Some(0), "{}", tail(&ended.stderr));
    let mut daemon = relayed("highwater");
    let ended = run(&mut daemon);
    assert_eq!(ended.code, Some(1), "{}", tail(&ended.stderr));
    assert!(tail(&ended.stderr).contains("channel binding check failed"), "{}", tail(&ended.stderr));
    // The connection for control, which `check` has alone, is bound as well.
    let (code, out, err) = daemon.run(&["check"]);
    assert_eq!(code, 3, "{out}{}", tail(&err));
    assert!(out.contains("channel binding check failed"), "{out}");
    guarded.gets_in("highwater", &format!("{}\n{PASSWORD}", guarded.verified())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_ends_it_at_once_and_the_server_is_not_hammered() {
    let guarded = Guarded::new(17, "password").await;
    secret_file(&guarded.folder.join("wrong"), "sesame");
    let wrong =
        format!("{}\npassword = {{ file = \"{}\" }}", guarded.verified(), guarded.folder.join("wrong").display());
    let ended = guarded.is_refused("highwater", &wrong, &["password authentication failed", "`password`"]);
    assert!(!ended.stderr.contains("sesame"));
    let failed = guarded.log().matches("password authentication failed for user \"highwater\"").count();
    assert_eq!(failed, 1, "it was tried once");
    guarded.is_refused("highwater", &guarded.verified(), &["password"]);
    let daemon = guarded.daemon("highwater", &wrong);
    let (code, out, err) = daemon.run(&["check"]);
    assert_eq!(code, 3, "{out}{}", tail(&err));
    assert!(out.contains("password authentication failed"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_login_works_that_a_server_may_ask_for() {
    let guarded = Guarded::new(17, "kinds").await;
    let verified = guarded.verified();
    let with = |name: &str| {
        let (cert, key) =
            (guarded.authority.path(&format!("{name}.pem")), guarded.authority.path(&format!("{name}.key")));
        format!("{verified}\ncert = \"{cert}\"\nkey = \"{key}\"")
    };
    guarded.gets_in("certed", &with("certed")).await;
    guarded.gets_in("doubly", &format!("{}\n{PASSWORD}", with("doubly"))).await;
    guarded.gets_in("clear", &format!("{verified}\n{PASSWORD}")).await;
    guarded.gets_in("md5er", &format!("tls = \"disable\"\n{PASSWORD}")).await;
    // A certificate of another role, and none.
    guarded.is_refused("certed", &with("doubly"), &["certificate authentication failed"]);
    guarded.is_refused("certed", &verified, &["certificate"]);
    let stranger = Authority::new(&guarded.folder.join("stranger"));
    stranger.issue("certed", "certed", "DNS:client", 10);
    let (cert, key) = (stranger.path("certed.pem"), stranger.path("certed.key"));
    guarded.is_refused("certed", &format!("{verified}\ncert = \"{cert}\"\nkey = \"{key}\""), &["UnknownCA", "`cert`"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_is_a_way_in() {
    let guarded = Guarded::new(17, "socket").await;
    let server = &guarded.postgres.server;
    let daemon = guarded.daemon("md5er", PASSWORD);
    let config = std::fs::read_to_string(daemon.folder.join("highwater.toml")).unwrap();
    let database = &guarded.postgres.database;
    let socket = format!("/{database}?host={}\"", server.data.display());
    let mut daemon = Daemon::new(&daemon.folder, &config.replace(&format!("/{database}\""), &socket));
    daemon.environment = vec![("SHOP_PASSWORD".into(), CANARY.into()), ("HIGHWATER_LOG".into(), "trace".into())];
    let ended = run(&mut daemon);
    assert_eq!(ended.code, Some(0), "{}", tail(&ended.stderr));
    assert_eq!(landed(&local(&daemon.folder.join("lake")), "shop.public.t").await.len(), 2);
    assert!(guarded.log().contains("host=[local]"), "it came by the socket");
    nothing_secret(&daemon.folder, &ended.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_told_at_trace_by_status_or_by_the_control_socket() {
    let guarded = Guarded::new(17, "canary").await;
    let s3 = S3::start().await;
    let daemon = guarded.daemon("clear", &format!("{}\npassword = {{ file = \"password\" }}", guarded.verified()));
    let config = std::fs::read_to_string(daemon.folder.join("highwater.toml")).unwrap();
    let (before, _) = config.split_once("[sinks.lake]").unwrap();
    let options =
        s3.options().replace("secret_access_key = \"test\"", "secret_access_key = { env = \"SHOP_PASSWORD\" }");
    let config = format!(
        "{before}[sinks.lake]\ntype = \"object-store\"\nfrom = [\"shop\"]\nurl = \"s3://lake/cdc\"\noptions = {options}\ncut = {{ age = \"100ms\" }}\n"
    );
    let folder = daemon.folder.clone();
    let mut daemon = Daemon::new(&folder, &config);
    daemon.environment = vec![("SHOP_PASSWORD".into(), CANARY.into()), ("HIGHWATER_LOG".into(), "trace".into())];
    daemon.start(&["run"], None);
    crate::spine::capturing(&daemon).await;
    let store = s3.store();
    highwater_tests::until(30, "the rows land", || async { landed(&store, "cdc/shop.public.t").await.len() == 2 })
        .await;
    let mut told = String::new();
    for words in [&["status"][..], &["status", "--json"], &["check"], &["check", "--json"], &["tail", "shop"]] {
        let (code, out, err) = daemon.run(words);
        assert_eq!(code, 0, "{words:?}: {out}{}", tail(&err));
        told += &format!("{out}{err}");
    }
    daemon.signal("TERM");
    let ended = daemon.wait(Duration::from_secs(5));
    assert_eq!(ended.code, Some(0), "{}", tail(&ended.stderr));
    assert!(ended.stderr.contains("TRACE"), "it was traced");
    told += &daemon.run(&["status", "--json"]).1;
    nothing_secret(&folder, &format!("{told}{}", ended.stderr));
}
