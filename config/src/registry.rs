//! `[registry]`: Confluent's REST API on an address of ours, or a registry
//! elsewhere under a url.

use std::path::PathBuf;
use std::time::Duration;

use url::{Host, Url};

use crate::listen::Listen;
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
    /// Where, and to whom.
    pub listen: Listen,
    /// Bytes of a body, at most.
    pub max_body: u64,
    /// Versions of all subjects, at most.
    pub max_versions: u64,
    /// How long a comparison may take.
    pub compare_within: Duration,
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
        let listen = Listen::read(bind, &mut section);
        let max_body = section.bytes("max_body").unwrap_or(1 << 20);
        if !(1 << 10..=64 << 20).contains(&max_body) {
            section.fault("max_body", "must be between 1KiB and 64MiB", None);
        }
        let max_versions = section.number("max_versions", 1_000_000).max(1);
        let compare_within = section.duration("compare_within").unwrap_or(Duration::from_secs(1));
        section.finish();
        Some(Self { listen: listen?, max_body, max_versions, compare_within })
    }
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
