//! PostgreSQL servers of the tests: one a version, shared, on a port of its
//! own, with its data under target/. `tests/servers` has installed the programs.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use tokio_postgres::{Client, NoTls};

use crate::{folder, free_port, must, root};

/// A server; stopped when it is dropped or the tests end.
pub struct Server {
    pub version: u32,
    pub port: u16,
    pub data: PathBuf,
    programs: PathBuf,
    /// Of its processes.
    environment: Vec<(String, String)>,
    /// Stops the server when our end of its pipe closes, however we end.
    guard: Mutex<Option<Child>>,
}

/// A database of a test's own on a server.
pub struct Postgres {
    pub server: Arc<Server>,
    pub database: String,
}

fn programs(version: u32) -> PathBuf {
    let list = std::fs::read_to_string(root().join("target/servers/postgres")).expect("tests/servers was run");
    let line = list.lines().find_map(|line| line.strip_prefix(&format!("{version} ")));
    PathBuf::from(line.unwrap_or_else(|| panic!("tests/servers found no PostgreSQL {version}")))
}

fn is_root() -> bool {
    must(Command::new("id").arg("-u")).trim() == "0"
}

/// A server's programs refuse to run as root.
fn as_server(program: &Path) -> Command {
    if is_root() {
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--"]).arg(program);
        command.current_dir("/");
        command
    } else {
        Command::new(program)
    }
}

impl Server {
    /// A server of a test's own; `settings` are lines of postgresql.conf.
    pub fn start(version: u32, settings: &str) -> Self {
        Self::start_in(version, settings, &[])
    }

    /// The same in an environment of its own.
    pub fn start_in(version: u32, settings: &str, environment: &[(&str, String)]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let programs = programs(version);
        let data = folder(&format!("pg{version}-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        if is_root() {
            must(Command::new("chown").arg("postgres").arg(&data));
        }
        let port = free_port();
        must(
            as_server(&programs.join("initdb"))
                .args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale", "C", "-D"])
                .arg(&data),
        );
        let mut conf = std::fs::read_to_string(data.join("postgresql.conf")).unwrap();
        conf.push_str(&format!(
            "\nport = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\nwal_level = logical\n\
             max_replication_slots = 200\nmax_wal_senders = 100\nmax_connections = 300\nfsync = off\n\
             log_min_messages = warning\ndeadlock_timeout = 20ms\n{settings}\n",
            data.display()
        ));
        std::fs::write(data.join("postgresql.conf"), conf).unwrap();
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let server = Self { version, port, data, programs, environment, guard: Mutex::new(None) };
        server.up();
        server
    }

    fn control(&self, words: &[&str]) -> Command {
        let mut command = as_server(&self.programs.join("pg_ctl"));
        command.arg("-D").arg(&self.data).arg("-l").arg(self.data.join("server.log")).args(words);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts it.
    pub fn up(&self) {
        must(self.control(&["-w", "start"]).stdout(Stdio::null()));
        // The guard outlives a killed test process and stops the server then.
        let script = format!(
            "cat >/dev/null; kill -QUIT $(head -1 '{0}/postmaster.pid' 2>/dev/null) 2>/dev/null; true",
            self.data.display()
        );
        let guard = Command::new("sh").args(["-c", &script]).stdin(Stdio::piped()).spawn().unwrap();
        *self.guard.lock().unwrap() = Some(guard);
    }

    /// Stops it: `fast` or `immediate`.
    pub fn down(&self, mode: &str) {
        must(&mut self.control(&["-w", "-m", mode, "stop"]));
        self.dismiss_guard();
    }

    /// SIGKILL to all of its processes.
    pub fn kill(&self) {
        let pid = std::fs::read_to_string(self.data.join("postmaster.pid")).unwrap();
        let pid = pid.lines().next().unwrap().to_owned();
        let children = Command::new("ps").args(["-o", "pid=", "--ppid", &pid]).output().unwrap().stdout;
        let children = String::from_utf8_lossy(&children).into_owned();
        let all: Vec<&str> = children.split_whitespace().chain([pid.as_str()]).collect();
        let _ = Command::new("kill").arg("-KILL").args(&all).status();
        let lives = |pid: &&str| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            !stat.is_empty() && !stat.contains(") Z ")
        };
        while all.iter().any(lives) {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        // Else the guard would take the next server for this one.
        let lock = format!(".s.PGSQL.{}.lock", self.port);
        for left in ["postmaster.pid", &lock] {
            let _ = std::fs::remove_file(self.data.join(left));
        }
        self.dismiss_guard();
    }

    fn dismiss_guard(&self) {
        if let Some(mut guard) = self.guard.lock().unwrap().take() {
            drop(guard.stdin.take());
            let _ = guard.wait();
        }
    }

    /// A standby of this server, which is stopped for the moment of copying it.
    /// Slots that are for failover are kept in step on it.
    pub fn standby(&self) -> Self {
        self.down("fast");
        let data = folder(&format!("{}-standby", self.port));
        must(Command::new("cp").arg("-a").arg(format!("{}/.", self.data.display())).arg(&data));
        self.up();
        if is_root() {
            must(Command::new("chown").arg("postgres").arg(&data));
        }
        must(Command::new("chmod").arg("700").arg(&data));
        let port = free_port();
        let mut conf = std::fs::read_to_string(data.join("postgresql.conf")).unwrap();
        conf.push_str(&format!(
            "\nport = {port}\nunix_socket_directories = '{}'\nhot_standby = on\nhot_standby_feedback = on\n\
             primary_conninfo = 'host=127.0.0.1 port={} user=postgres dbname=postgres'\nprimary_slot_name = 'standby'\n",
            data.display(),
            self.port
        ));
        if self.version >= 17 {
            conf.push_str("sync_replication_slots = on\n");
        }
        std::fs::write(data.join("postgresql.conf"), conf).unwrap();
        std::fs::write(data.join("standby.signal"), "").unwrap();
        let _ = std::fs::remove_file(data.join("postmaster.pid"));
        let standby = Self {
            version: self.version,
            port,
            data,
            programs: self.programs.clone(),
            environment: self.environment.clone(),
            guard: Mutex::new(None),
        };
        standby.up();
        standby
    }

    /// Other settings, at the next start or reload.
    pub fn set(&self, settings: &str) {
        let file = self.data.join("postgresql.conf");
        let conf = std::fs::read_to_string(&file).unwrap();
        std::fs::write(file, format!("{conf}\n{settings}\n")).unwrap();
    }

    /// Makes a standby a primary.
    pub fn promote(&self) {
        must(&mut self.control(&["-w", "promote"]));
    }

    /// A connection as superuser.
    pub async fn connect(&self, database: &str) -> Client {
        let url = format!("host=127.0.0.1 port={} user=postgres dbname={database}", self.port);
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.dismiss_guard();
    }
}

impl Postgres {
    /// A fresh database on the shared server of a version.
    pub async fn new(version: u32) -> Self {
        static SHARED: LazyLock<Mutex<HashMap<u32, Arc<Server>>>> = LazyLock::new(Default::default);
        let server = tokio::task::spawn_blocking(move || {
            let mut shared = SHARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            shared.entry(version).or_insert_with(|| Arc::new(Server::start(version, ""))).clone()
        });
        Self::on(server.await.unwrap()).await
    }

    /// A fresh database on a server.
    pub async fn on(server: Arc<Server>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let database = format!("t{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let admin = server.connect("postgres").await;
        // The least that a role needs: it owns nothing.
        let role = "DO $$ BEGIN CREATE ROLE highwater LOGIN REPLICATION; EXCEPTION WHEN duplicate_object OR unique_violation THEN END $$";
        admin.batch_execute(role).await.unwrap();
        admin.batch_execute(&format!("CREATE DATABASE {database}")).await.unwrap();
        let this = Self { server, database };
        let client = this.client().await;
        client
            .batch_execute("ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO highwater")
            .await
            .unwrap();
        this
    }

    /// As superuser.
    pub async fn client(&self) -> Client {
        self.server.connect(&self.database).await
    }

    /// For a source, as the role that has the least.
    pub fn url(&self) -> String {
        format!("postgres://highwater@127.0.0.1:{}/{}", self.server.port, self.database)
    }

    /// What a person runs a script with, as superuser.
    pub fn psql(&self, script: &Path) {
        let beside = self.server.programs.join("psql");
        let psql = if beside.exists() { beside } else { PathBuf::from("psql") };
        let url = format!("postgres://postgres@127.0.0.1:{}/{}", self.server.port, self.database);
        must(Command::new(psql).args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &url, "-f"]).arg(script));
    }

    /// Makes the publication for tables, as their owner would.
    pub async fn publish(&self, name: &str, tables: &str) {
        let sql = format!("CREATE PUBLICATION {name} FOR TABLE {tables} WITH (publish_via_partition_root = true)");
        self.client().await.batch_execute(&sql).await.unwrap();
    }
}
