//! How a registry elsewhere stands, as far as its last answers tell.

use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use crate::error::{Error, chain};

/// What the last answers said; shared by all that ask.
#[derive(Clone, Debug, Default)]
pub(super) struct Answers {
    shared: Arc<Mutex<Standing>>,
}

/// How it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// When it last answered what can be used, in microseconds since 1970.
    pub answered: Option<i64>,
    /// While it does not.
    pub trouble: Option<Trouble>,
}

/// Why it cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Trouble {
    /// With all causes.
    pub error: String,
    /// What to do.
    pub remedy: &'static str,
    /// Since when, in microseconds since 1970.
    pub since: i64,
    /// How often it was asked in vain since.
    pub tries: u64,
}

impl Answers {
    pub(super) fn get(&self) -> Standing {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes note of an answer; `now` in microseconds.
    pub(super) fn note<T>(&self, answer: &Result<T, Error>, now: i64) {
        let mut standing = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        match answer.as_ref().err().and_then(|error| Some((error, remedy(error)?))) {
            None => *standing = Standing { answered: Some(now), trouble: None },
            Some((error, remedy)) => {
                let (since, tries) = standing.trouble.as_ref().map_or((now, 0), |before| (before.since, before.tries));
                standing.trouble = Some(Trouble { error: chain(error), remedy, since, tries: tries + 1 });
            }
        }
    }
}

/// None: it answers well, though it may refuse what was asked.
fn remedy(error: &Error) -> Option<&'static str> {
    match error {
        Error::Unreachable { .. } => Some("check that it is up, and `url` and `ca` in `[registry]`"),
        Error::Answered { status: 401 | 403, .. } => Some("check `user`, `password` or `token` in `[registry]`"),
        Error::Answered { status: 429 | 500.., .. } => Some("look at the registry's own log"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_gives_the_time_and_an_answer_ends_it() {
        let answers = Answers::default();
        let down = || Err::<(), _>(Error::Unreachable { url: "http://x".into(), source: "refused".into() });
        let refused = |status| Error::Answered { url: "http://x".into(), status, code: 0, message: String::new() };
        answers.note(&down(), 5);
        answers.note(&down(), 9);
        let trouble = answers.get().trouble.unwrap();
        assert_eq!((trouble.since, trouble.tries), (5, 2));
        assert_eq!(trouble.error, "registry at http://x cannot be reached: refused");
        // It is there: what it refuses is not its trouble.
        answers.note(&Err::<(), _>(refused(409)), 11);
        assert_eq!(answers.get(), Standing { answered: Some(11), trouble: None });
        answers.note(&Err::<(), _>(refused(401)), 12);
        assert!(answers.get().trouble.unwrap().remedy.contains("password"));
        assert_eq!(answers.get().answered, Some(11));
    }
}
