//! A private PostgreSQL under target/bench, durable as a real one is, stopped
//! when we end, however that is.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::{Result, machine};

pub(crate) struct Server {
    pub(crate) port: u16,
    data: PathBuf,
    programs: PathBuf,
    /// Stops the server when our end of its pipe closes.
    guard: Option<Child>,
}

/// Runs a command that must succeed; its output.
pub(crate) fn must(command: &mut Command) -> Result<String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.success() {
        true => Ok(text),
        false => Err(format!("{command:?}: {text}{}", String::from_utf8_lossy(&output.stderr)).into()),
    }
}

impl Server {
    /// Makes it and starts it.
    pub(crate) fn start(programs: &Path, folder: &Path) -> Result<Self> {
        let data = folder.join("postgres");
        std::fs::create_dir_all(&data)?;
        let root = must(Command::new("id").arg("-u"))?.trim() == "0";
        if root {
            must(Command::new("chown").arg("postgres").arg(&data))?;
        }
        // A server's programs refuse to run as root.
        let as_server = |program: &str| {
            let mut command = Command::new(if root { "runuser" } else { "env" });
            if root {
                command.args(["-u", "postgres", "--"]);
            }
            command.arg(programs.join(program)).current_dir("/");
            command
        };
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        must(
            as_server("initdb").args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale", "C", "-D"]).arg(&data),
        )?;
        let conf = data.join("postgresql.conf");
        let settings = format!(
            "\nport = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\nwal_level = logical\n\
             max_replication_slots = 40\nmax_wal_senders = 20\nmax_connections = 100\nshared_buffers = 1GB\n\
             max_wal_size = 32GB\nmin_wal_size = 4GB\ncheckpoint_timeout = 1h\nwal_buffers = 64MB\nautovacuum = off\n\
             work_mem = 64MB\ntrack_commit_timestamp = on\nlog_min_messages = warning\n",
            data.display()
        );
        std::fs::write(&conf, std::fs::read_to_string(&conf)? + &settings)?;
        let log = data.join("server.log");
        must(as_server("pg_ctl").arg("-D").arg(&data).arg("-l").arg(log).args(["-w", "start"]).stdout(Stdio::null()))?;
        let script =
            format!("cat >/dev/null; kill -QUIT $(head -1 '{}/postmaster.pid') 2>/dev/null; true", data.display());
        let guard = Command::new("sh").args(["-c", &script]).stdin(Stdio::piped()).spawn()?;
        Ok(Self { port, data, programs: programs.into(), guard: Some(guard) })
    }

    /// One of PostgreSQL's clients, over TCP.
    pub(crate) fn client(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.args(["-h", "127.0.0.1", "-U", "postgres", "-p", &self.port.to_string()]);
        command
    }

    /// Runs SQL; what it prints.
    pub(crate) fn sql(&self, database: &str, sql: &str) -> Result<String> {
        let mut psql = self.client("psql");
        psql.args(["-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", sql]);
        Ok(must(&mut psql)?.trim().to_owned())
    }

    /// A place in the WAL.
    pub(crate) fn lsn(&self, database: &str) -> Result<u64> {
        parse_lsn(&self.sql(database, "SELECT pg_current_wal_insert_lsn()")?)
    }

    /// A copy of a slot, so that the next one drains the same.
    pub(crate) fn copy_slot(&self, database: &str, base: &str, name: &str) -> Result<()> {
        self.sql(database, &format!("SELECT pg_copy_logical_replication_slot('{base}', '{name}')")).map(drop)
    }

    /// Drops a slot once nobody reads it.
    pub(crate) fn drop_slot(&self, database: &str, name: &str) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match self.sql(database, &format!("SELECT pg_drop_replication_slot('{name}')")) {
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
                Ok(_) => return Ok(()),
            }
        }
    }

    /// CPU seconds of all backends that have ended.
    pub(crate) fn ended_backends(&self) -> f64 {
        let file = std::fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default();
        machine::reaped(file.lines().next().unwrap_or_default())
    }
}

/// `16/B374D848` as a number.
pub(crate) fn parse_lsn(text: &str) -> Result<u64> {
    let parsed = text.parse::<connector_postgres::Lsn>();
    Ok(parsed.map_err(|error| error.to_string())?.0)
}

/// A number as PostgreSQL prints it.
pub(crate) fn print_lsn(lsn: u64) -> String {
    connector_postgres::Lsn(lsn).to_string()
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut guard) = self.guard.take() {
            drop(guard.stdin.take());
            let _ = guard.wait();
        }
    }
}
