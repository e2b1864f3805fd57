//! `type = "postgres"`: a PostgreSQL source.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use figment::value::Value;
use url::Url;

use crate::contract::Contract;
use crate::pattern::Patterns;
use crate::section::{Secret, Section};

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PostgresHost {
    /// Name, address, or a socket's folder.
    pub name: String,
    /// Port.
    pub port: u16,
}

/// Which of several servers is wanted, as libpq's `target_session_attrs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Session {
    /// The first that can be reached.
    #[default]
    Any,
    /// One that takes writes.
    ReadWrite,
    /// One that takes none.
    ReadOnly,
    /// One that is no standby.
    Primary,
    /// A standby.
    Standby,
    /// A standby, or else any.
    PreferStandby,
}

/// A server, a database, a role: what a url and the settings beside it say.
#[derive(Clone, Debug)]
pub struct PostgresServer {
    /// One at least; tried in this order.
    pub hosts: Vec<PostgresHost>,
    /// Which of them.
    pub session: Session,
    /// Role.
    pub user: String,
    /// Database.
    pub database: String,
    /// Password.
    pub password: Option<Secret>,
    /// Encryption.
    pub tls: PostgresTls,
}

/// A PostgreSQL source.
#[derive(Clone, Debug)]
pub struct Postgres {
    /// The source's name.
    pub name: String,
    /// One at least; tried in this order.
    pub hosts: Vec<PostgresHost>,
    /// Which of them.
    pub session: Session,
    /// Role.
    pub user: String,
    /// Database.
    pub database: String,
    /// Password.
    pub password: Option<Secret>,
    /// Encryption.
    pub tls: PostgresTls,
    /// Tables, as `schema.table`.
    pub tables: Patterns,
    /// Replication slot.
    pub slot: String,
    /// Whether standbys that synchronise slots are to have it (17 and later).
    pub failover: bool,
    /// Publication.
    pub publication: String,
    /// Whether tables are read first.
    pub snapshot: SnapshotMode,
    /// Connections that read them.
    pub snapshot_connections: u64,
    /// Rows a second over all of them; 0: no limit.
    pub snapshot_rows_per_second: u64,
    /// How often an idle position is made durable and acknowledged.
    pub heartbeat: Duration,
    /// Whose changes those of a partition are.
    pub partitions: Partitions,
    /// A greater row goes to the quarantine.
    pub max_row: u64,
    /// What is done with a table whose new shape its subject's level forbids.
    pub on_incompatible: OnIncompatible,
    /// By pattern of `schema.table`; later ones win.
    pub table_options: Vec<(Patterns, TableOptions)>,
}

/// Settings of some tables.
#[derive(Clone, Debug)]
pub struct TableOptions {
    /// Which columns are captured.
    pub columns: Patterns,
    /// Columns carried as the database's text.
    pub as_text: Vec<String>,
    /// What its rows must be.
    pub contract: Contract,
    /// The source's, unless the table has its own.
    pub on_incompatible: OnIncompatible,
}

/// What is done with a table whose new shape its subject's level forbids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnIncompatible {
    /// Its changes are held back until somebody approves.
    #[default]
    Park,
    /// It becomes a new version all the same.
    Evolve,
    /// The daemon ends.
    Halt,
}

impl OnIncompatible {
    fn read(section: &mut Section<'_>, default: Self) -> Self {
        let all = [(Self::Park, "park"), (Self::Evolve, "evolve"), (Self::Halt, "halt")];
        let mut choices = all.map(|(_, name)| name);
        // The first is what counts where nothing is said.
        choices.sort_by_key(|name| all.iter().any(|(policy, n)| n == name && *policy != default));
        let chosen = section.choice("on_incompatible", &choices);
        all.into_iter().find(|(_, name)| *name == chosen).map_or(default, |(policy, _)| policy)
    }
}

/// Encryption of a server's connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PostgresTls {
    /// In the clear.
    Disable,
    /// Certificate and name are checked.
    VerifyFull {
        /// Signers; else the machine's.
        ca: Option<PathBuf>,
        /// Our own certificate.
        cert: Option<PathBuf>,
        /// Its key.
        key: Option<PathBuf>,
    },
}

/// Whose changes those of a partition are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Partitions {
    /// Its root's: a partitioned table is one table.
    Root,
    /// Its own: each that holds rows is a table, and what it is a part of is none.
    Leaf,
}

/// Whether tables are read before they are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotMode {
    /// Each table once.
    Initial,
    /// Only changes from now on.
    Never,
}

impl Postgres {
    pub(crate) fn read(name: &str, mut section: Section<'_>) -> Self {
        let server = PostgresServer::read(&mut section);
        let mut source = Self {
            name: name.into(),
            hosts: server.hosts,
            session: server.session,
            user: server.user,
            database: server.database,
            password: server.password,
            tls: server.tls,
            tables: section.patterns("tables", "*.*"),
            slot: section.text("slot").unwrap_or_else(|| format!("highwater_{name}")),
            failover: section.flag("failover", true),
            publication: section.text("publication").unwrap_or_else(|| format!("highwater_{name}")),
            snapshot: SnapshotMode::Initial,
            snapshot_connections: 2,
            snapshot_rows_per_second: 0,
            heartbeat: section.duration("heartbeat").unwrap_or(Duration::from_secs(10)),
            partitions: match section.choice("partitions", &["root", "leaf"]) {
                "leaf" => Partitions::Leaf,
                _ => Partitions::Root,
            },
            max_row: section.bytes("max_row").unwrap_or(64 << 20),
            on_incompatible: OnIncompatible::read(&mut section, OnIncompatible::Park),
            table_options: Vec::new(),
        };
        let slot_is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if source.slot.is_empty() || source.slot.len() > 63 || !source.slot.chars().all(slot_is_plain) {
            section.fault("slot", "a slot's name has only a-z, 0-9 and _, 63 at most", None);
        }
        if let Some(mut snapshot) = section.section("snapshot") {
            if snapshot.choice("mode", &["initial", "never"]) == "never" {
                source.snapshot = SnapshotMode::Never;
            }
            source.snapshot_connections = snapshot.number("connections", 2).clamp(1, 64);
            source.snapshot_rows_per_second = snapshot.number("rows_per_second", 0);
            snapshot.finish();
        }
        let tables: BTreeMap<String, Value> = section.named("table").into_iter().collect();
        for (pattern, value) in tables {
            let path = format!("{}.table.{pattern}", section.path);
            let matching = match Patterns::new(vec![pattern.clone()]) {
                Ok(matching) => matching,
                Err((_, why)) => {
                    section.faulty.add(&path, format!("is no pattern: {why}"), None);
                    continue;
                }
            };
            let mut table = Section::new(&path, value, section.faulty);
            let mut options = TableOptions {
                columns: table.patterns("columns", "*"),
                as_text: Vec::new(),
                contract: table.section("contract").map(Contract::read).unwrap_or_default(),
                on_incompatible: OnIncompatible::read(&mut table, source.on_incompatible),
            };
            if let Some(mut carried) = table.section("as") {
                for (column, how) in carried.rest() {
                    if how.as_str() != Some("text") {
                        let path = format!("{}.{column}", carried.path);
                        carried.faulty.add(&path, "can only be \"text\"", None);
                    }
                    options.as_text.push(column);
                }
            }
            table.finish();
            source.table_options.push((matching, options));
        }
        section.finish();
        source
    }

    /// What is done with a table whose new shape its subject's level forbids.
    pub fn on_incompatible(&self, schema: &str, table: &str) -> OnIncompatible {
        self.options(schema, table).map_or(self.on_incompatible, |options| options.on_incompatible)
    }

    /// The options of a table.
    pub fn options(&self, schema: &str, table: &str) -> Option<&TableOptions> {
        let name = format!("{schema}.{table}");
        self.table_options.iter().rev().find(|(pattern, _)| pattern.matches(&name)).map(|(_, options)| options)
    }
}

impl PostgresServer {
    /// `url`, `password`, `tls`, `ca`, `cert`, `key` of a section.
    pub(crate) fn read(section: &mut Section<'_>) -> Self {
        let folder = section.faulty.file.parent().map(PathBuf::from).unwrap_or_default();
        let text = section.required("url");
        let mut server = Self {
            hosts: vec![PostgresHost { name: "localhost".into(), port: 5432 }],
            session: Session::Any,
            user: String::new(),
            database: String::new(),
            password: None,
            tls: PostgresTls::Disable,
        };
        let near = server.read_url(&text, section);
        if let Some(password) = section.secret("password", near) {
            server.password = Some(password);
        }
        let path = |section: &mut Section<'_>, name| section.text(name).map(|path| folder.join(path));
        let (ca, cert, key) = (path(section, "ca"), path(section, "cert"), path(section, "key"));
        if cert.is_some() != key.is_some() {
            section.fault("cert", "`cert` and `key` go together", None);
        }
        let default: &[&'static str] = if near { &["disable", "verify-full"] } else { &["verify-full", "disable"] };
        server.tls = match section.choice("tls", default) {
            "disable" => PostgresTls::Disable,
            _ => PostgresTls::VerifyFull { ca, cert, key },
        };
        server
    }

    /// Whether the servers are all on this machine.
    fn read_url(&mut self, text: &str, section: &mut Section<'_>) -> bool {
        if text.is_empty() {
            return true;
        }
        const FORM: &str = "write it like postgres://role@host:5432/database";
        let urls: Option<Vec<Url>> = one_each(text)
            .map(|text| Url::parse(&text).ok().filter(|url| matches!(url.scheme(), "postgres" | "postgresql")))
            .collect();
        let Some((url, urls)) = urls.as_ref().and_then(|urls| Some((urls.first()?, urls))) else {
            // The text itself may hold a password: it is not repeated.
            section.fault("url", "is no postgres url", Some(FORM));
            return true;
        };
        let mut socket = None;
        for (key, value) in url.query_pairs() {
            match (&*key, Session::by_name(&value)) {
                ("host", _) => socket = Some(value.into_owned()),
                ("target_session_attrs", Some(session)) => self.session = session,
                ("target_session_attrs", None) => {
                    let what = format!("target_session_attrs is {value:?}, which is not known");
                    section.fault(
                        "url",
                        what,
                        Some("one of any, read-write, read-only, primary, standby, prefer-standby"),
                    );
                }
                (key, _) => section.fault(
                    "url",
                    format!("parameter {key:?} is not known"),
                    Some("settings stand beside the url"),
                ),
            }
        }
        let host = |url: &Url| PostgresHost {
            name: url.host_str().map(percent_decode).filter(|name| !name.is_empty()).unwrap_or("localhost".into()),
            port: url.port().unwrap_or(5432),
        };
        self.hosts = match socket {
            Some(socket) => vec![PostgresHost { name: socket, port: url.port().unwrap_or(5432) }],
            None => urls.iter().map(host).collect(),
        };
        self.user = percent_decode(url.username());
        self.database = percent_decode(url.path().trim_start_matches('/'));
        if self.user.is_empty() {
            section.fault("url", "names no role", Some(FORM));
        }
        if self.database.is_empty() {
            self.database = self.user.clone();
        }
        let near = self.hosts.iter().all(PostgresHost::is_near);
        if let Some(password) = url.password() {
            let value = Value::from(percent_decode(password));
            match crate::section::secret(value, near, &section.faulty.file) {
                Ok(secret) => self.password = Some(secret),
                Err((what, how)) => {
                    section.fault("url", format!("the password {what}"), how.or(Some("use `password`")))
                }
            }
        }
        near
    }
}

impl PostgresHost {
    /// Whether it is on this machine.
    fn is_near(&self) -> bool {
        let name = self.name.trim_matches(['[', ']']);
        name.starts_with('/')
            || name == "localhost"
            || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl fmt::Display for PostgresHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.port)
    }
}

impl Session {
    fn by_name(name: &str) -> Option<Self> {
        Some(match name {
            "any" => Self::Any,
            "read-write" => Self::ReadWrite,
            "read-only" => Self::ReadOnly,
            "primary" => Self::Primary,
            "standby" => Self::Standby,
            "prefer-standby" => Self::PreferStandby,
            _ => return None,
        })
    }
}

/// A url of several hosts, as libpq takes them, as a url for each.
fn one_each(text: &str) -> impl Iterator<Item = String> {
    let begin = text.find("://").map_or(0, |at| at + 3);
    let end = text[begin..].find(['/', '?', '#']).map_or(text.len(), |at| begin + at);
    let begin = text[begin..end].rfind('@').map_or(begin, |at| begin + at + 1);
    let (before, hosts, after) = (&text[..begin], &text[begin..end], &text[end..]);
    hosts.split(',').map(move |host| format!("{before}{host}{after}"))
}

fn percent_decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&c, tail)) = rest.split_first() {
        let hex = (c == b'%').then(|| tail.get(..2)).flatten().and_then(|h| std::str::from_utf8(h).ok());
        match hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &tail[2..];
            }
            None => {
                out.push(c);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
