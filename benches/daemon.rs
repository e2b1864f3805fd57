//! The real daemon, `highwater run`, as a user starts it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::server::{Server, parse_lsn};
use crate::{Result, checksum, machine};

/// Asking costs the daemon too, so not often: at most this is added to a time.
const ASK: Duration = Duration::from_millis(10);

/// A configured daemon.
pub(crate) struct Daemon {
    pub(crate) folder: PathBuf,
}

impl Daemon {
    /// In a new folder: one source, no sinks.
    pub(crate) fn new(folder: &Path, server: &Server, database: &str, slot: &str, snapshot: &str) -> Result<Self> {
        if folder.exists() {
            std::fs::remove_dir_all(folder)?;
        }
        std::fs::create_dir_all(folder)?;
        let config = format!(
            "data_dir = \"data\"\n[sources.shop]\ntype = \"postgres\"\nurl = \"postgres://postgres@127.0.0.1:{}/{database}\"\n\
             tables = [\"public.*\"]\nslot = \"{slot}\"\npublication = \"bench\"\nsnapshot = {{ mode = \"{snapshot}\" }}\n",
            server.port
        );
        std::fs::write(folder.join("highwater.toml"), config)?;
        Ok(Self { folder: folder.into() })
    }

    /// Adds a line to its source.
    pub(crate) fn with_source_setting(&self, line: &str) -> Result<()> {
        let file = self.folder.join("highwater.toml");
        let config = std::fs::read_to_string(&file)? + line + "\n";
        std::fs::write(file, config).map_err(Into::into)
    }

    /// Its only sink: a folder of files, made anew, with steps of so many bytes.
    pub(crate) fn with_sink(&self, lake: &Path, format: &str, compression: Option<&str>, cut: u64) -> Result<()> {
        if lake.exists() {
            std::fs::remove_dir_all(lake)?;
        }
        let file = self.folder.join("highwater.toml");
        let config = std::fs::read_to_string(&file)?;
        let source = config.split("[sinks.").next().unwrap_or_default();
        let compression = compression.map_or(String::new(), |codec| format!("compression = \"{codec}\"\n"));
        let sink = format!(
            "[sinks.lake]\ntype = \"object-store\"\nfrom = [\"shop\"]\nurl = \"file://{}\"\nformat = \"{format}\"\n{compression}cut = {{ bytes = \"{cut}B\" }}\n",
            lake.display()
        );
        std::fs::write(file, format!("{source}{sink}"))?;
        Ok(())
    }

    /// Adds a sink: a PostgreSQL warehouse.
    pub(crate) fn with_warehouse(&self, port: u16, database: &str, mode: &str) -> Result<()> {
        self.without_sinks()?;
        let file = self.folder.join("highwater.toml");
        let config = std::fs::read_to_string(&file)?
            + &format!(
                "[sinks.warehouse]\ntype = \"postgres\"\nfrom = [\"shop\"]\nmode = \"{mode}\"\n\
                 url = \"postgres://postgres@127.0.0.1:{port}/{database}\"\n"
            );
        std::fs::write(file, config).map_err(Into::into)
    }

    /// Takes all sinks away.
    pub(crate) fn without_sinks(&self) -> Result<()> {
        let file = self.folder.join("highwater.toml");
        let config = std::fs::read_to_string(&file)?;
        let sources = config.split("[sinks.").next().unwrap_or_default();
        std::fs::write(file, sources).map_err(Into::into)
    }

    /// `run`, with its log lines in `stderr` of the folder.
    pub(crate) fn command(&self, words: &[&str], filter: &str) -> Result<Command> {
        let binary = std::env::current_exe()?.with_file_name("highwater");
        let mut command = Command::new(binary);
        command
            .arg("run")
            .args(words)
            .current_dir(&self.folder)
            .env("HIGHWATER_LOG", filter)
            .env_remove("HIGHWATER_CONFIG");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(std::fs::File::create(self.folder.join("stderr"))?);
        Ok(command)
    }

    /// What it said.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(self.folder.join("stderr")).unwrap_or_default()
    }

    /// Its status; None while it does not answer.
    pub(crate) fn status(&self) -> Option<Value> {
        let mut socket = UnixStream::connect(self.folder.join("data/control.sock")).ok()?;
        socket.write_all(b"{\"command\":\"status\"}\n").ok()?;
        let mut line = String::new();
        BufReader::new(socket).read_line(&mut line).ok()?;
        serde_json::from_str(&line).ok()
    }

    /// Waits until its status fulfils something; when that was.
    pub(crate) fn until(&self, child: &mut Child, what: &str, done: impl Fn(&Value) -> bool) -> Result<Instant> {
        let deadline = Instant::now() + Duration::from_secs(300);
        loop {
            if self.status().is_some_and(|status| done(&status)) {
                return Ok(Instant::now());
            }
            if let Some(status) = child.try_wait()? {
                return Err(format!("the daemon ended with {status} before {what}: {}", self.said()).into());
            }
            if Instant::now() > deadline {
                return Err(format!("not within 300 s: {what}: {}", self.said()).into());
            }
            std::thread::sleep(ASK);
        }
    }

    /// Waits until all up to a place of the WAL is durable in the log.
    pub(crate) fn until_durable(&self, child: &mut Child, end: u64) -> Result<Instant> {
        self.until(child, "it was caught up", |status| {
            let position = status["sources"][0]["position"].as_str().and_then(|text| parse_lsn(text).ok());
            position.is_some_and(|position| position >= end)
        })
    }

    /// SIGTERM.
    pub(crate) fn stop(child: &Child) -> Result<()> {
        crate::server::must(Command::new("kill").arg(child.id().to_string())).map(drop)
    }

    /// What its log holds.
    pub(crate) fn log(&self, transaction: impl FnMut(i64, u64)) -> Result<checksum::Checksum> {
        checksum::of_log(&self.folder.join("data/sources/shop"), transaction)
    }

    /// Its memory now and at its highest, in MiB.
    pub(crate) fn memory(child: &Child) -> (f64, f64) {
        (machine::memory(child.id(), "VmRSS"), machine::memory(child.id(), "VmHWM"))
    }
}

/// Microseconds since 1970 at the head of a line of the daemon's log.
pub(crate) fn time_of(line: &str) -> Option<i64> {
    let stamp = line.split(' ').next()?;
    let number = |from: usize, to: usize| stamp.get(from..to)?.parse::<i64>().ok();
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let days = connector::days_from_civil(year, month as u32, day as u32);
    let seconds = days * 86_400 + number(11, 13)? * 3600 + number(14, 16)? * 60 + number(17, 19)?;
    Some(seconds * 1_000_000 + number(20, 26)?)
}

/// A field of such a line.
pub(crate) fn field(line: &str, name: &str) -> Option<u64> {
    let (_, behind) = line.split_once(&format!(" {name}="))?;
    behind.split(' ').next()?.parse().ok()
}
