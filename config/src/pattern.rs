//! Which tables: globs, where `!` takes away whatever the order.

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

/// `["public.*", "!public.tmp_*"]`.
#[derive(Clone, Debug)]
pub struct Patterns {
    given: Vec<String>,
    wanted: GlobSet,
    unwanted: GlobSet,
}

impl Patterns {
    /// Err: the pattern that cannot be read, and why.
    pub fn new(given: Vec<String>) -> Result<Self, (String, String)> {
        let (mut wanted, mut unwanted) = (GlobSetBuilder::new(), GlobSetBuilder::new());
        for pattern in &given {
            let (text, set) = match pattern.strip_prefix('!') {
                Some(rest) => (rest, &mut unwanted),
                None => (pattern.as_str(), &mut wanted),
            };
            let glob = GlobBuilder::new(text).backslash_escape(true).build();
            set.add(glob.map_err(|error| (pattern.clone(), error.kind().to_string()))?);
        }
        let build = |set: GlobSetBuilder| set.build().map_err(|error| (given.join(", "), error.to_string()));
        Ok(Self { wanted: build(wanted)?, unwanted: build(unwanted)?, given: given.clone() })
    }

    /// Whether a name (`schema.table`, or a column) is meant.
    pub fn matches(&self, name: &str) -> bool {
        self.wanted.is_match(name) && !self.unwanted.is_match(name)
    }

    /// Those without a glob in them: tables that are meant to exist.
    pub fn exact(&self) -> impl Iterator<Item = &str> {
        self.given.iter().map(String::as_str).filter(|p| !p.contains(['!', '*', '?', '[', '{', '\\']))
    }

    /// As written.
    pub fn given(&self) -> &[String] {
        &self.given
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exclusion_wins_whatever_the_order() {
        let list = |items: &[&str]| Patterns::new(items.iter().map(|s| s.to_string()).collect()).unwrap();
        for patterns in [list(&["public.*", "!public.tmp_*"]), list(&["!public.tmp_*", "public.*"])] {
            assert!(patterns.matches("public.orders"));
            assert!(!patterns.matches("public.tmp_x"));
            assert!(!patterns.matches("other.orders"));
        }
        assert_eq!(list(&["a.b", "a.*"]).exact().collect::<Vec<_>>(), ["a.b"]);
    }
}
