//! Whether a request is let in, before anything is done for it.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::{Extensions, HeaderMap, header};

use crate::Serve;
use crate::auth::{Auth, Certified, Role};

/// Who may ask.
pub struct Gate {
    auth: Auth,
    /// Answers only to names of this machine.
    loopback: bool,
}

/// Why a request is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It names another machine: a page in somebody's browser may have sent it.
    Host,
    /// Nobody that is known.
    Unknown,
}

impl Refused {
    /// For people.
    pub fn message(self) -> &'static str {
        match self {
            Self::Host => "this address answers to names of this machine only",
            Self::Unknown => "a user's password or a token is needed",
        }
    }
}

impl Gate {
    pub(crate) fn new(serve: Serve, certificates: bool) -> Self {
        Self { loopback: serve.bind.ip().is_loopback(), auth: Auth::new(serve.users, serve.tokens, certificates) }
    }

    /// What whoever asks may do.
    pub fn admit(&self, request: &Request) -> impl Future<Output = Result<Role, Refused>> + Send {
        self.admitted(request.headers(), request.extensions())
    }

    /// Not by the request itself: its body is nobody's to share.
    async fn admitted(&self, headers: &HeaderMap, extensions: &Extensions) -> Result<Role, Refused> {
        let host = headers.get(header::HOST).map(|host| host.to_str().unwrap_or("?"));
        if self.loopback && !host.is_none_or(is_local) {
            return Err(Refused::Host);
        }
        let certified = extensions.get::<Certified>().and_then(|certified| certified.0);
        self.auth.role(headers, certified).await.ok_or(Refused::Unknown)
    }
}

/// Whether a Host header names this machine.
fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((inside, _)) => inside,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_local() {
        for host in ["localhost", "LOCALHOST:8081", "127.0.0.1:8081", "127.9.9.9", "[::1]:8081", "[::1]"] {
            assert!(is_local(host), "{host}");
        }
        for host in
            ["evil.example", "localhost.evil.example:8081", "10.0.0.1:8081", "127.0.0.1.nip.io", "", "[fe80::1]"]
        {
            assert!(!is_local(host), "{host}");
        }
    }
}
