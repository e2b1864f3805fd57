//! `[registry]`: Confluent's REST API on an address of ours, or a registry
//! elsewhere under a url.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use figment::value::Value;
use url::{Host, Url};

use crate::section::{Secret, Section};

/// The registry's section.
#[derive(Clone, Debug)]
pub enum Registry {
    /// Ours is served.
    Served(Box<ServedRegistry>),
    /// Another one is used.
    External(Box<ExternalRegistry>),
}

/// Ours, as it is served.
#[derive(Clone, Debug)]
pub struct ServedRegistry {
    /// Address and port.
    pub bind: SocketAddr,
    /// Encryption.
    pub tls: Option<RegistryTls>,
    /// By name.
    pub users: BTreeMap<String, RegistryUser>,
    /// By name.
    pub tokens: BTreeMap<String, RegistryToken>,
    /// Bytes of a body, at most.
    pub max_body: u64,
    /// Connections, at most.
    pub max_connections: u64,
    /// Versions of all subjects, at most.
    pub max_versions: u64,
    /// How long a comparison may take.
    pub compare_within: Duration,
}

/// Files of PEM.
#[derive(Clone, Debug)]
pub struct RegistryTls {
    /// The certificate and what leads to its root.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Who signs clients' certificates.
    pub client_ca: Option<PathBuf>,
    /// What a client with one may do.
    pub client_role: RegistryRole,
}

/// What somebody may do; each can do what those before it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegistryRole {
    /// Ask.
    Read,
    /// Register.
    Write,
    /// Everything.
    Admin,
}

/// Somebody with a password.
#[derive(Clone, Debug)]
pub struct RegistryUser {
    /// Argon2 of the password.
    pub password: Secret,
    /// What they may do.
    pub role: RegistryRole,
}

/// Somebody with a token.
#[derive(Clone, Debug)]
pub struct RegistryToken {
    /// The token.
    pub token: Secret,
    /// What they may do.
    pub role: RegistryRole,
}

/// A registry with Confluent's API, elsewhere.
#[derive(Clone, Debug)]
pub struct ExternalRegistry {
    /// Where it is, without secrets.
    pub url: Url,
    /// For basic authentication.
    pub user: Option<String>,
    /// For basic authentication.
    pub password: Option<Secret>,
    /// For bearer authentication.
    pub token: Option<Secret>,
    /// Who signs its certificate; else the machine's roots.
    pub ca: Option<PathBuf>,
    /// For one answer.
    pub timeout: Duration,
}

const ROLES: &[&str] = &["read", "write", "admin"];

impl RegistryRole {
    fn by_name(name: &str) -> Self {
        match name {
            "admin" => RegistryRole::Admin,
            "write" => RegistryRole::Write,
            _ => RegistryRole::Read,
        }
    }
}

impl Registry {
    /// None: there was a fault.
    pub(crate) fn read(mut section: Section<'_>) -> Option<Self> {
        match (section.text("bind"), section.text("url")) {
            (Some(_), Some(_)) => {
                let what = "stands beside `bind`: a registry is served here or used elsewhere";
                section.fault("url", what, Some("leave one out"));
                None
            }
            (None, None) => {
                let form = "write bind = \"127.0.0.1:8081\", or url = \"https://registry.example\"";
                section.fault("bind", "is missing", Some(form));
                None
            }
            (Some(bind), None) => ServedRegistry::read(&bind, section).map(|served| Self::Served(Box::new(served))),
            (None, Some(url)) => {
                ExternalRegistry::read(&url, section).map(|external| Self::External(Box::new(external)))
            }
        }
    }
}

impl ServedRegistry {
    fn read(bind: &str, mut section: Section<'_>) -> Option<Self> {
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
            let read = RegistryTls {
                cert: folder.join(tls.required("cert")),
                key: folder.join(tls.required("key")),
                client_ca: tls.text("client_ca").map(|path| folder.join(path)),
                client_role: RegistryRole::by_name(tls.choice("client_role", ROLES)),
            };
            tls.finish();
            read
        });
        let users = people(&mut section, "users", |user| {
            let password = user.secret("password", true)?;
            if !password.expose().starts_with("$argon2") {
                let how = "`highwater schemas password` makes the hash of one";
                user.fault("password", "is no argon2 hash: $argon2id$v=19$…", Some(how));
            }
            Some(RegistryUser { password, role: RegistryRole::by_name(user.choice("role", ROLES)) })
        });
        // A literal here would be as good as the token itself.
        let tokens = people(&mut section, "tokens", |token| {
            let secret = token.secret("token", false)?;
            if secret.expose().len() < 16 {
                token.fault("token", "is shorter than 16 characters", None);
            }
            Some(RegistryToken { token: secret, role: RegistryRole::by_name(token.choice("role", ROLES)) })
        });
        let max_body = section.bytes("max_body").unwrap_or(1 << 20);
        if !(1 << 10..=64 << 20).contains(&max_body) {
            section.fault("max_body", "must be between 1KiB and 64MiB", None);
        }
        let max_connections = section.number("max_connections", 1_024).max(1);
        let max_versions = section.number("max_versions", 1_000_000).max(1);
        let compare_within = section.duration("compare_within").unwrap_or(Duration::from_secs(1));
        if address.is_some_and(|address| !address.ip().is_loopback()) {
            let certified = tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
            let how = "tls = { cert = \"…\", key = \"…\" } and [registry.users.NAME] or [registry.tokens.NAME]";
            if tls.is_none() {
                section.fault("bind", "is not this machine alone: it needs TLS", Some(how));
            }
            if users.is_empty() && tokens.is_empty() && !certified {
                section.fault("bind", "is not this machine alone: it needs users or tokens", Some(how));
            }
        }
        section.finish();
        Some(Self { bind: address?, tls, users, tokens, max_body, max_connections, max_versions, compare_within })
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

impl ExternalRegistry {
    fn read(text: &str, mut section: Section<'_>) -> Option<Self> {
        const FORM: &str = "write it like https://registry.example:8081";
        let folder = section.faulty.file.parent().map(PathBuf::from).unwrap_or_default();
        let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        if url.is_none() {
            // The text itself may hold a password: it is not repeated.
            section.fault("url", "is no http or https url", Some(FORM));
        }
        let near = url.as_ref().is_some_and(|url| match url.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(ip)) => ip.is_loopback(),
            Some(Host::Ipv6(ip)) => ip.is_loopback(),
            None => false,
        });
        if url.as_ref().is_some_and(|url| !url.username().is_empty() || url.password().is_some()) {
            section.fault("url", "holds a name or password", Some("use `user` and `password`"));
        }
        let (user, password) = (section.text("user"), section.secret("password", near));
        let token = section.secret("token", near);
        if user.is_some() != password.is_some() {
            section.fault("user", "`user` and `password` go together", None);
        }
        if token.is_some() && user.is_some() {
            section.fault("token", "stands beside `user`: one of them", None);
        }
        if !near && url.as_ref().is_some_and(|url| url.scheme() == "http") && (token.is_some() || user.is_some()) {
            section.fault("url", "would send the password in the clear", Some("use https"));
        }
        let ca = section.text("ca").map(|path| folder.join(path));
        let timeout = section.duration("timeout").unwrap_or(Duration::from_secs(10));
        section.finish();
        Some(Self { url: url?, user, password, token, ca, timeout })
    }
}
