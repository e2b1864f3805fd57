//! Who asks, and what they may do.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use argon2::{Argon2, PasswordHasher, PasswordVerifier};
use axum::http::{HeaderMap, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

/// What somebody may do; each can do what those before it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Ask: schemas, subjects, settings; look up, compare.
    Read,
    /// Register; delete softly.
    Write,
    /// Change settings and modes; delete for good.
    Admin,
}

/// Somebody with a password.
#[derive(Clone, Debug)]
pub struct User {
    /// The name.
    pub name: String,
    /// Argon2, as `$argon2id$v=19$…`.
    pub hash: String,
    /// What they may do.
    pub role: Role,
}

/// Somebody with a token.
#[derive(Clone, Debug)]
pub struct Token {
    /// SHA-256 of it.
    pub sha256: [u8; 32],
    /// What they may do.
    pub role: Role,
}

impl Token {
    /// Of the token itself.
    pub fn new(token: &str, role: Role) -> Self {
        Self { sha256: Sha256::digest(token.as_bytes()).into(), role }
    }
}

/// A password as the configuration has it.
pub fn hash_password(password: &str) -> Option<String> {
    let seed = RandomState::new();
    let mut salt = [0; 16];
    salt[..8].copy_from_slice(&seed.hash_one(1).to_le_bytes());
    salt[8..].copy_from_slice(&seed.hash_one(2).to_le_bytes());
    let hashed = Argon2::default().hash_password_with_salt(password.as_bytes(), &salt);
    hashed.ok().map(|hash| hash.to_string())
}

/// A role that the connection's certificate gives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Certified(pub(crate) Option<Role>);

pub(crate) struct Auth {
    users: Vec<User>,
    tokens: Vec<Token>,
    /// Without users, tokens and certificates, everybody is admin.
    open: bool,
    /// Passwords that were right, by a hash that means nothing elsewhere.
    known: Mutex<HashMap<[u8; 32], (Role, Instant)>>,
    seed: RandomState,
    /// Argon2 takes 19 MiB and its time: few at once.
    verifying: Semaphore,
}

const REMEMBERED: usize = 1_024;
const REMEMBERED_FOR: Duration = Duration::from_secs(300);

impl Auth {
    pub(crate) fn new(users: Vec<User>, tokens: Vec<Token>, certificates: bool) -> Self {
        let open = users.is_empty() && tokens.is_empty() && !certificates;
        let (known, seed) = (Mutex::default(), RandomState::new());
        Self { users, tokens, open, known, seed, verifying: Semaphore::new(2) }
    }

    /// None: nobody that is known.
    pub(crate) async fn role(&self, headers: &HeaderMap, certified: Option<Role>) -> Option<Role> {
        if self.open {
            return Some(Role::Admin);
        }
        let Some(given) = headers.get(header::AUTHORIZATION) else { return certified };
        let (scheme, rest) = given.to_str().ok()?.split_once(' ')?;
        if scheme.eq_ignore_ascii_case("bearer") {
            let given: [u8; 32] = Sha256::digest(rest.trim().as_bytes()).into();
            return self.tokens.iter().find(|token| token.sha256 == given).map(|token| token.role);
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let decoded = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
        let (name, password) = decoded.split_once(':')?;
        self.by_password(name, password).await
    }

    async fn by_password(&self, name: &str, password: &str) -> Option<Role> {
        let mut hash = Sha256::new();
        hash.update(self.seed.hash_one(0).to_le_bytes());
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name.as_bytes());
        hash.update(password.as_bytes());
        let key: [u8; 32] = hash.finalize().into();
        let now = Instant::now();
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied();
        if let Some((role, since)) = known
            && now.duration_since(since) < REMEMBERED_FOR
        {
            return Some(role);
        }
        // A name that is not known costs as much as one that is.
        let user = self.users.iter().find(|user| user.name == name);
        let hash = user.or(self.users.first())?.hash.clone();
        let password = password.to_owned();
        let _few = self.verifying.acquire().await.ok()?;
        let verified =
            tokio::task::spawn_blocking(move || Argon2::default().verify_password(password.as_bytes(), hash.as_str()));
        verified.await.ok()?.ok()?;
        let role = user?.role;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(key, (role, now));
        Some(role)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_right_password_or_token_has_a_role() {
        let user = User { name: "ann".into(), hash: hash_password("pa:ss").unwrap(), role: Role::Write };
        let auth = Auth::new(vec![user], vec![Token::new("t0ken", Role::Read)], false);
        let ask = async |value: &str| {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
            auth.role(&headers, None).await
        };
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        assert_eq!(ask(&basic("ann:pa:ss")).await, Some(Role::Write));
        assert_eq!(ask(&basic("ann:pa:ss")).await, Some(Role::Write), "remembered");
        assert_eq!(ask(&basic("ann:pass")).await, None);
        assert_eq!(ask(&basic("bob:pa:ss")).await, None);
        assert_eq!(ask("bearer t0ken").await, Some(Role::Read));
        assert_eq!(ask("Bearer t0kem").await, None);
        assert_eq!(ask("Digest x").await, None);
        assert_eq!(auth.role(&HeaderMap::new(), None).await, None);
        assert_eq!(auth.role(&HeaderMap::new(), Some(Role::Admin)).await, Some(Role::Admin), "by certificate");
    }
}
