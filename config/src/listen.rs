//! An address of ours: `bind`, `tls`, `users`, `tokens`, `max_connections`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use figment::value::Value;

use crate::section::{Secret, Section};

/// Where it listens, and to whom.
#[derive(Clone, Debug)]
pub struct Listen {
    /// Address and port.
    pub bind: SocketAddr,
    /// Encryption.
    pub tls: Option<ListenTls>,
    /// By name.
    pub users: BTreeMap<String, ListenUser>,
    /// By name.
    pub tokens: BTreeMap<String, ListenToken>,
    /// Connections, at most.
    pub max_connections: u64,
}

/// Files of PEM.
#[derive(Clone, Debug)]
pub struct ListenTls {
    /// The certificate and what leads to its root.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Who signs clients' certificates.
    pub client_ca: Option<PathBuf>,
    /// What a client with one may do.
    pub client_role: Role,
}

/// What somebody may do; each can do what those before it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Ask.
    Read,
    /// Register.
    Write,
    /// Everything.
    Admin,
}

/// Somebody with a password.
#[derive(Clone, Debug)]
pub struct ListenUser {
    /// Argon2 of the password.
    pub password: Secret,
    /// What they may do.
    pub role: Role,
}

/// Somebody with a token.
#[derive(Clone, Debug)]
pub struct ListenToken {
    /// The token.
    pub token: Secret,
    /// What they may do.
    pub role: Role,
}

/// `[http]`: whether it runs, and how well.
#[derive(Clone, Debug)]
pub struct Http {
    /// Where, and to whom.
    pub listen: Listen,
    /// What fails for longer is not ready.
    pub patience: Duration,
}

const ROLES: &[&str] = &["read", "write", "admin"];

impl Role {
    fn by_name(name: &str) -> Self {
        match name {
            "admin" => Self::Admin,
            "write" => Self::Write,
            _ => Self::Read,
        }
    }
}

impl Http {
    /// None: there was a fault.
    pub(crate) fn read(mut section: Section<'_>) -> Option<Self> {
        let bind = section.required("bind");
        // What is missing has been said.
        let listen = if bind.is_empty() { None } else { Listen::read(&bind, &mut section) };
        let patience = section.duration("patience").unwrap_or(Duration::from_secs(30));
        section.finish();
        Some(Self { listen: listen?, patience })
    }
}

impl Listen {
    pub(crate) fn read(bind: &str, section: &mut Section<'_>) -> Option<Self> {
        let folder = section.faulty.file.parent().map(PathBuf::from).unwrap_or_default();
        let address = bind.parse::<SocketAddr>().ok().or_else(|| {
            let port = bind.strip_prefix("localhost:")?.parse().ok()?;
            Some(SocketAddr::from(([127, 0, 0, 1], port)))
        });
        if address.is_none() {
            let what = format!("{bind:?} is no address with a port");
            section.fault("bind", what, Some("write it like \"127.0.0.1:8081\""));
        }
        let tls = section.section("tls").map(|mut tls| {
            let read = ListenTls {
                cert: folder.join(tls.required("cert")),
                key: folder.join(tls.required("key")),
                client_ca: tls.text("client_ca").map(|path| folder.join(path)),
                client_role: Role::by_name(tls.choice("client_role", ROLES)),
            };
            tls.finish();
            read
        });
        let users = people(section, "users", |user| {
            let password = user.secret("password", true)?;
            if !password.expose().starts_with("$argon2") {
                let how = "`highwater schemas password` makes the hash of one";
                user.fault("password", "is no argon2 hash: $argon2id$v=19$…", Some(how));
            }
            Some(ListenUser { password, role: Role::by_name(user.choice("role", ROLES)) })
        });
        // A literal here would be as good as the token itself.
        let tokens = people(section, "tokens", |token| {
            let secret = token.secret("token", false)?;
            if secret.expose().len() < 16 {
                token.fault("token", "is shorter than 16 characters", None);
            }
            Some(ListenToken { token: secret, role: Role::by_name(token.choice("role", ROLES)) })
        });
        let max_connections = section.number("max_connections", 1_024).max(1);
        if address.is_some_and(|address| !address.ip().is_loopback()) {
            let certified = tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
            let how = format!(
                "tls = {{ cert = \"…\", key = \"…\" }} and [{0}.users.NAME] or [{0}.tokens.NAME]",
                section.path
            );
            if tls.is_none() {
                section.fault("bind", "is not this machine alone: it needs TLS", Some(&how));
            }
            if users.is_empty() && tokens.is_empty() && !certified {
                section.fault("bind", "is not this machine alone: it needs users or tokens", Some(&how));
            }
        }
        Some(Self { bind: address?, tls, users, tokens, max_connections })
    }
}

fn people<T>(
    section: &mut Section<'_>,
    name: &'static str,
    read: impl Fn(&mut Section<'_>) -> Option<T>,
) -> BTreeMap<String, T> {
    let mut all = BTreeMap::new();
    let above = section.path.clone();
    let named: Vec<(String, Value)> = section.named(name);
    for (who, value) in named {
        let mut one = Section::new(&format!("{above}.{name}.{who}"), value, section.faulty);
        let secret = if name == "users" { "password" } else { "token" };
        match read(&mut one) {
            Some(person) => drop(all.insert(who, person)),
            None if !one.has_fault() => one.fault(secret, "is missing", None),
            None => {}
        }
        one.finish();
    }
    all
}
