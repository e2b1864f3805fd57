//! A subject's name and the context it lies in: `name`, or `:.context:name`.

use std::fmt;
use std::sync::Arc;

use crate::error::{Code, Refusal};

/// Of a whole name, in bytes.
const MAX: usize = 4_096;

/// A subject, by its one name: those of the default context are without prefix.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subject(Arc<str>);

/// The context of whatever names none.
pub(crate) const DEFAULT_CONTEXT: &str = ".";

impl Subject {
    /// A subject that can be registered under.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let this = Self::scope(text)?;
        if this.name().is_empty() {
            return Err(this.refused());
        }
        Ok(this)
    }

    /// A subject, or a context alone (`:.context:`), as settings have it.
    pub fn scope(text: &str) -> Result<Self, Refusal> {
        let (context, name) = split(text);
        let this = Self::of(context, name);
        let reserved = matches!(this.name(), "__GLOBAL" | "__EMPTY");
        if text.len() > MAX || text.chars().any(char::is_control) || reserved {
            return Err(this.refused());
        }
        Ok(this)
    }

    /// As another subject refers to it: in the same context if it names none.
    pub(crate) fn beside(&self, text: &str) -> Result<Self, Refusal> {
        if text.starts_with(":.") { Self::parse(text) } else { Self::parse(&Self::of(self.context(), text).0) }
    }

    /// `name` in a context, which may be written without its dot.
    pub(crate) fn of(context: &str, name: &str) -> Self {
        let dotted = context.strip_prefix('.').unwrap_or(context);
        if dotted.is_empty() { Self(name.into()) } else { Self(format!(":.{dotted}:{name}").into()) }
    }

    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn shared(&self) -> Arc<str> {
        self.0.clone()
    }

    /// `.` or `.context`.
    pub fn context(&self) -> &str {
        split(&self.0).0
    }

    /// Without its context.
    pub fn name(&self) -> &str {
        split(&self.0).1
    }

    fn refused(&self) -> Refusal {
        let shown: String = self.0.chars().take(200).collect();
        Refusal::new(Code::InvalidSubject, format!("The specified subject '{}' is not a valid.", shown.escape_debug()))
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Context and name.
pub(crate) fn split(text: &str) -> (&str, &str) {
    match text.strip_prefix(':').filter(|rest| rest.starts_with('.')) {
        None => (DEFAULT_CONTEXT, text),
        Some(rest) => rest.split_once(':').unwrap_or((rest, "")),
    }
}

/// What a list of subjects is narrowed to.
#[derive(Clone, Debug)]
pub struct Prefix {
    context: Option<String>,
    name: String,
}

impl Prefix {
    /// `:*:name` is in every context, `name` in the default one.
    pub fn new(text: &str) -> Self {
        if let Some(name) = text.strip_prefix(":*:") {
            return Self { context: None, name: name.into() };
        }
        let (context, name) = split(text);
        Self { context: Some(context.into()), name: name.into() }
    }

    pub(crate) fn matches(&self, subject: &str) -> bool {
        let (context, name) = split(subject);
        self.context.as_ref().is_none_or(|wanted| wanted == context) && name.starts_with(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_has_one_name_however_it_is_written() {
        let check = |text: &str, whole: &str, context: &str, name: &str| {
            let subject = Subject::scope(text).unwrap();
            assert_eq!((subject.as_str(), subject.context(), subject.name()), (whole, context, name), "{text}");
        };
        check("orders", "orders", ".", "orders");
        check(":.:orders", "orders", ".", "orders");
        check(":.ctx:orders", ":.ctx:orders", ".ctx", "orders");
        check(":.ctx:", ":.ctx:", ".ctx", "");
        check(":.ctx:a:b", ":.ctx:a:b", ".ctx", "a:b");
        check("a/b %?\u{202e}", "a/b %?\u{202e}", ".", "a/b %?\u{202e}");
        check(":a", ":a", ".", ":a");
    }

    #[test]
    fn control_characters_reserved_words_and_novels_are_no_names() {
        for text in ["a\0b", "a\nb", "__GLOBAL", "__EMPTY", ":.ctx:__GLOBAL", "", ":.ctx:", &"x".repeat(5_000)] {
            assert_eq!(Subject::parse(text).unwrap_err().code, Code::InvalidSubject, "{text:?}");
        }
    }

    #[test]
    fn a_prefix_without_context_means_the_default_one() {
        let check = |prefix: &str, subject: &str| Prefix::new(prefix).matches(subject);
        assert!(check(":*:", ":.c:a") && check(":*:", "a") && check(":*:a", ":.c:ab"));
        assert!(check("a", "ab") && !check("a", ":.c:ab") && !check("a", "ba"));
        assert!(check(":.c:", ":.c:ab") && !check(":.c:", "ab"));
    }
}
