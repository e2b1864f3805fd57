//! Reads a section's settings and gathers its faults.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use figment::value::{Dict, Value};

use crate::fault::{Fault, nearest};
use crate::pattern::Patterns;
use crate::units;

/// A value that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Of a value that does not come from a configuration.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

/// Where faults are put, and how places are found.
pub(crate) struct Faulty {
    pub(crate) file: PathBuf,
    /// Lines of keys, by path.
    pub(crate) lines: HashMap<String, usize>,
    /// Whether the environment lies over the file.
    pub(crate) layered: bool,
    /// By line; those of the environment have none.
    pub(crate) faults: Vec<(usize, Fault)>,
}

impl Faulty {
    pub(crate) fn add(&mut self, key: &str, what: impl Into<String>, suggestion: Option<String>) {
        let (line, place) = self.place(key);
        self.faults.push((line, Fault { place, key: key.into(), what: what.into(), suggestion }));
    }

    /// A variable wins over the file, so it is the one to be mended.
    fn place(&self, key: &str) -> (usize, String) {
        let variable = format!("HIGHWATER_{}", key.replace('.', "__").to_uppercase());
        if self.layered && std::env::var_os(&variable).is_some() {
            return (0, variable);
        }
        let mut path = key;
        loop {
            if let Some(line) = self.lines.get(path) {
                return (*line, format!("{}:{line}", self.file.display()));
            }
            match path.rsplit_once('.') {
                Some((above, _)) => path = above,
                None => return (0, self.file.display().to_string()),
            }
        }
    }

    /// As a person reads the file.
    pub(crate) fn in_order(mut self) -> Vec<Fault> {
        self.faults.sort_by_key(|(line, _)| *line);
        self.faults.into_iter().map(|(_, fault)| fault).collect()
    }
}

/// One table of the file; each setting is taken once, what is left is unknown.
pub(crate) struct Section<'a> {
    pub(crate) path: String,
    values: Dict,
    known: Vec<&'static str>,
    pub(crate) faulty: &'a mut Faulty,
}

impl<'a> Section<'a> {
    pub(crate) fn new(path: &str, value: Value, faulty: &'a mut Faulty) -> Self {
        let values = match value {
            Value::Dict(_, values) => values,
            _ => {
                faulty.add(path, "must be a table", None);
                Dict::new()
            }
        };
        Self { path: path.into(), values, known: Vec::new(), faulty }
    }

    fn key(&self, name: &str) -> String {
        if self.path.is_empty() { name.into() } else { format!("{}.{name}", self.path) }
    }

    pub(crate) fn fault(&mut self, name: &str, what: impl Into<String>, suggestion: Option<&str>) {
        let key = self.key(name);
        self.faulty.add(&key, what, suggestion.map(str::to_owned));
    }

    /// Whether something is wrong in it by now.
    pub(crate) fn has_fault(&self) -> bool {
        let inside = format!("{}.", self.path);
        self.faulty.faults.iter().any(|(_, fault)| fault.key.starts_with(&inside))
    }

    pub(crate) fn take(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.values.remove(name)
    }

    pub(crate) fn text(&mut self, name: &'static str) -> Option<String> {
        match self.take(name)? {
            Value::String(_, text) => Some(text),
            _ => {
                self.fault(name, "must be a text", None);
                None
            }
        }
    }

    pub(crate) fn required(&mut self, name: &'static str) -> String {
        let had = self.values.contains_key(name);
        let text = self.text(name);
        if !had {
            self.fault(name, "is missing", None);
        }
        text.unwrap_or_default()
    }

    /// A number, a truth or a text, as text.
    pub(crate) fn scalar(&mut self, name: &'static str) -> Option<String> {
        let value = self.take(name)?;
        let text = crate::contract::scalar_text(&value);
        if text.is_none() {
            self.fault(name, "must be a number or a text", None);
        }
        text
    }

    /// Where a setting stands, for what is found wrong with it later.
    pub(crate) fn place(&self, name: &str) -> String {
        let key = self.key(name);
        format!("{}: {key}", self.faulty.place(&key).1)
    }

    pub(crate) fn flag(&mut self, name: &'static str, default: bool) -> bool {
        match self.take(name) {
            None => default,
            Some(Value::Bool(_, flag)) => flag,
            Some(_) => {
                self.fault(name, "must be true or false", None);
                default
            }
        }
    }

    pub(crate) fn number(&mut self, name: &'static str, default: u64) -> u64 {
        match self.take(name) {
            None => default,
            Some(value) => whole(&value).unwrap_or_else(|| {
                self.fault(name, "must be a whole number, 0 or more", None);
                default
            }),
        }
    }

    pub(crate) fn bytes(&mut self, name: &'static str) -> Option<u64> {
        let parsed = match self.take(name)? {
            Value::String(_, text) => units::bytes(&text),
            value @ Value::Num(..) => whole(&value),
            _ => None,
        };
        if parsed.is_none() {
            self.fault(name, "is no size", Some("write it like \"64MiB\""));
        }
        parsed
    }

    pub(crate) fn duration(&mut self, name: &'static str) -> Option<Duration> {
        let parsed = match self.take(name)? {
            Value::String(_, text) => units::duration(&text),
            _ => None,
        };
        if parsed.is_none() {
            self.fault(name, "is no time", Some("write it like \"10s\", \"5m\" or \"7d\""));
        }
        parsed
    }

    pub(crate) fn list(&mut self, name: &'static str) -> Option<Vec<String>> {
        let Value::Array(_, items) = self.take(name)? else {
            self.fault(name, "must be a list of texts", Some("write it like [\"public.*\"]"));
            return None;
        };
        let texts: Option<Vec<String>> = items.into_iter().map(Value::into_string).collect();
        if texts.is_none() {
            self.fault(name, "must be a list of texts", None);
        }
        texts
    }

    pub(crate) fn patterns(&mut self, name: &'static str, default: &str) -> Patterns {
        let given = self.list(name).unwrap_or_else(|| vec![default.into()]);
        Patterns::new(given).unwrap_or_else(|(pattern, why)| {
            self.fault(name, format!("{pattern:?} is no pattern: {why}"), None);
            Patterns::new(Vec::new()).expect("no pattern cannot be wrong")
        })
    }

    pub(crate) fn choice(&mut self, name: &'static str, choices: &[&'static str]) -> &'static str {
        let Some(text) = self.text(name) else { return choices[0] };
        match choices.iter().find(|choice| **choice == text) {
            Some(choice) => choice,
            None => {
                let meant = nearest(&text, choices.iter().copied());
                let suggestion = match meant {
                    Some(meant) => format!("did you mean {meant:?}?"),
                    None => format!("one of {}", choices.join(", ")),
                };
                self.fault(name, format!("{text:?} is not known"), Some(&suggestion));
                choices[0]
            }
        }
    }

    pub(crate) fn section(&mut self, name: &'static str) -> Option<Section<'_>> {
        let value = self.take(name)?;
        let path = self.key(name);
        Some(Section::new(&path, value, self.faulty))
    }

    /// Named tables: `[sources.NAME]`.
    pub(crate) fn named(&mut self, name: &'static str) -> Vec<(String, Value)> {
        match self.take(name) {
            None => Vec::new(),
            Some(Value::Dict(_, values)) => values.into_iter().collect(),
            Some(_) => {
                self.fault(name, "must be a table", None);
                Vec::new()
            }
        }
    }

    /// Every setting that is left, as it is.
    pub(crate) fn rest(&mut self) -> Dict {
        std::mem::take(&mut self.values)
    }

    /// `{ env = "…" }`, `{ file = "…" }`, or the text itself where `literal` allows.
    pub(crate) fn secret(&mut self, name: &'static str, literal: bool) -> Option<Secret> {
        let value = self.take(name)?;
        let base = self.faulty.file.clone();
        match secret(value, literal, &base) {
            Ok(secret) => Some(secret),
            Err((what, suggestion)) => {
                self.fault(name, what, suggestion);
                None
            }
        }
    }

    /// What was not taken is not known.
    pub(crate) fn finish(mut self) {
        for key in self.rest().into_keys() {
            let meant = nearest(&key, self.known.iter().copied()).map(|meant| format!("did you mean `{meant}`?"));
            let path = self.key(&key);
            self.faulty.add(&path, "is not a setting", meant);
        }
    }
}

/// TOML's integers have a sign, which plain `to_u128` does not take.
pub(crate) fn whole(value: &Value) -> Option<u64> {
    let Value::Num(_, number) = value else { return None };
    match (number.to_u128(), number.to_i128()) {
        (Some(number), _) => u64::try_from(number).ok(),
        (None, Some(number)) => u64::try_from(number).ok(),
        (None, None) => None,
    }
}

type WhyNot = (String, Option<&'static str>);

/// `config` is the configuration's file: relative paths begin at its folder.
pub(crate) fn secret(value: Value, literal: bool, config: &Path) -> Result<Secret, WhyNot> {
    const HOW: &str = "write { env = \"NAME\" } or { file = \"PATH\" }";
    match value {
        Value::String(_, text) if literal => Ok(Secret(text)),
        Value::String(..) => Err(("may not stand in the file in the clear for a server elsewhere".into(), Some(HOW))),
        Value::Dict(_, table) if table.len() == 1 => match table.into_iter().next() {
            Some((key, Value::String(_, name))) if key == "env" => {
                std::env::var(&name).map(Secret).map_err(|_| (format!("the environment has no variable {name}"), None))
            }
            Some((key, Value::String(_, path))) if key == "file" => {
                secret_file(&config.parent().unwrap_or(Path::new(".")).join(path))
            }
            _ => Err(("is no reference to a secret".into(), Some(HOW))),
        },
        _ => Err(("is no reference to a secret".into(), Some(HOW))),
    }
}

fn secret_file(path: &Path) -> Result<Secret, WhyNot> {
    use std::os::unix::fs::PermissionsExt;
    let unreadable = |error: std::io::Error| (format!("{} cannot be read: {error}", path.display()), None);
    let mode = std::fs::metadata(path).map_err(unreadable)?.permissions().mode() & 0o777;
    if mode & !0o640 != 0 {
        return Err((format!("{} has mode {mode:04o}: others may read it", path.display()), Some("chmod 0600")));
    }
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    Ok(Secret(text.trim_end_matches(['\r', '\n']).to_owned()))
}
