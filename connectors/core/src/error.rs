//! An error that says what to do about it.

use std::error::Error as StdError;
use std::fmt;

/// What the runtime does after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It may pass: back off and try again.
    Retry,
    /// A newer daemon took over: stop, and let it.
    Yield,
    /// A person must act.
    Halt,
}

/// The error of every connector.
#[derive(Debug)]
pub struct Error {
    action: Action,
    message: String,
    hint: Option<String>,
    stream: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// With the connectors' error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// What was attempted, on what, in lower case, without a stop.
    pub fn new(action: Action, message: impl Into<String>) -> Self {
        Self { action, message: message.into(), hint: None, stream: None, source: None }
    }

    /// May pass.
    pub fn retry(message: impl Into<String>) -> Self {
        Self::new(Action::Retry, message)
    }

    /// A person must act.
    pub fn halt(message: impl Into<String>) -> Self {
        Self::new(Action::Halt, message)
    }

    /// A newer daemon took over.
    pub fn superseded(message: impl Into<String>) -> Self {
        Self::new(Action::Yield, message)
    }

    /// Adds the remedy: what to type, what to change.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Says that one table alone is concerned: others may go on without it.
    #[must_use]
    pub fn of_stream(mut self, stream: &str) -> Self {
        self.stream = Some(stream.into());
        self
    }

    /// The one table that is concerned, by its stream.
    pub fn stream(&self) -> Option<&str> {
        self.stream.as_deref()
    }

    /// What the runtime does now.
    pub fn action(&self) -> Action {
        self.action
    }

    /// The remedy, if there is one.
    pub fn remedy(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The message with all its causes, for a place that holds one line.
    pub fn chain(&self) -> String {
        let mut out = self.message.clone();
        let mut cause = StdError::source(self);
        while let Some(error) = cause {
            let text = error.to_string();
            // Others' errors may tell their causes in their own text.
            if !out.contains(&text) {
                out.push_str(": ");
                out.push_str(&text);
            }
            cause = error.source();
        }
        out
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|error| error as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_was_told_is_not_told_again() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let told = Error::retry(format!("get of x: {refused}")).because(refused);
        let error = Error::retry("could not list x").because(told);
        assert_eq!(error.chain(), "could not list x: get of x: connection refused");
        let error = Error::retry("could not list x").because(std::io::Error::from(std::io::ErrorKind::NotFound));
        assert_eq!(error.chain(), "could not list x: entity not found");
    }
}
