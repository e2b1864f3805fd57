//! Levels, modes and other settings: of all, of a context, of a subject; the
//! nearest counts.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Registry, Shown};
use crate::change::Change;
use crate::compatibility::Level;
use crate::error::{Code, Refusal};
use crate::merge;
use crate::rules;
use crate::subject::{Prefix, Subject};

/// What may be done to subjects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Mode {
    /// Everything, but no own ids.
    #[default]
    Readwrite,
    /// Nothing changes.
    Readonly,
    /// Nothing changes; of all, it counts before any subject's own.
    ReadonlyOverride,
    /// Schemas come with their ids and versions; nothing is checked.
    Import,
    /// Nothing changes here: another registry is written. Only of all.
    Forward,
}

impl Mode {
    /// As Confluent writes it.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Readwrite => "READWRITE",
            Mode::Readonly => "READONLY",
            Mode::ReadonlyOverride => "READONLY_OVERRIDE",
            Mode::Import => "IMPORT",
            Mode::Forward => "FORWARD",
        }
    }

    /// By its name, in any letter case.
    pub fn by_name(name: &str) -> Option<Self> {
        let all = [Mode::Readwrite, Mode::Readonly, Mode::ReadonlyOverride, Mode::Import, Mode::Forward];
        all.into_iter().find(|mode| mode.name().eq_ignore_ascii_case(name))
    }

    fn is_readonly(self) -> bool {
        matches!(self, Mode::Readonly | Mode::ReadonlyOverride | Mode::Forward)
    }
}

/// Settings of a subject, of a context, or of all; what is not set is inherited.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Config {
    /// What a new schema is compared with, and how.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compatibility_level: Option<Level>,
    /// Whether schemas are normalized as they are registered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub normalize: Option<bool>,
    /// Another subject that is meant by this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// A property of the metadata: only versions that agree in it are compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compatibility_group: Option<String>,
    /// All others, kept and given back.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

type Fits = fn(&Value) -> bool;
type Members = Map<String, Value>;

/// Members that are kept and given back, whether or not they have an effect.
const OTHERS: &[(&str, Fits)] = &[
    ("validateFields", Value::is_boolean),
    ("validateNames", Value::is_boolean),
    ("validateRules", Value::is_boolean),
    ("compatibilityPolicy", Value::is_string),
    ("defaultMetadata", Value::is_object),
    ("overrideMetadata", Value::is_object),
    ("defaultRuleSet", Value::is_object),
    ("overrideRuleSet", Value::is_object),
];

/// A request that is no request for settings.
#[derive(Debug)]
pub(crate) struct WrongType(pub(crate) String);

/// Granted or refused, if it is a request at all.
pub(crate) type Judged<T> = Result<Result<T, Refusal>, WrongType>;

impl Config {
    /// As changed by a request's members; gives what was understood, to be given back.
    fn changed(&self, request: &Map<String, Value>) -> Judged<(Self, Members)> {
        let mut new = self.clone();
        let mut echo = Map::new();
        for (member, value) in request {
            let wrong = || WrongType(format!("{member:?} has the wrong type"));
            let text = || value.as_str().map(str::to_owned).ok_or_else(wrong);
            let unset = value.is_null();
            match member.as_str() {
                "compatibility" => {
                    new.compatibility_level = if unset { None } else { Level::by_name(&text()?) };
                    match new.compatibility_level {
                        Some(level) => drop(echo.insert(member.clone(), level.name().into())),
                        None if unset => {}
                        None => return Ok(Err(invalid_level())),
                    }
                    continue;
                }
                "normalize" if unset => new.normalize = None,
                "normalize" => new.normalize = Some(value.as_bool().ok_or_else(wrong)?),
                "alias" => new.alias = if unset { None } else { Some(text()?) },
                "compatibilityGroup" => new.compatibility_group = if unset { None } else { Some(text()?) },
                other => match OTHERS.iter().find(|(name, _)| *name == other) {
                    None => continue,
                    Some(_) if unset => drop(new.others.remove(other)),
                    Some((_, fits)) if !fits(value) => return Err(wrong()),
                    Some(_) => {
                        if matches!(other, "defaultRuleSet" | "overrideRuleSet")
                            && let Err(refusal) = rules::check(value)
                        {
                            return Ok(Err(refusal));
                        }
                        new.others.insert(member.clone(), value.clone());
                    }
                },
            }
            if !unset {
                echo.insert(member.clone(), value.clone());
            }
        }
        Ok(Ok((new, echo)))
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a schema is registered with more than it comes with.
    fn adds(&self) -> bool {
        let members = ["defaultMetadata", "overrideMetadata", "defaultRuleSet", "overrideRuleSet"];
        !self.others.is_empty() && members.iter().any(|member| self.others.contains_key(*member))
    }

    /// A schema's metadata between those by default and those that override.
    pub(crate) fn metadata(&self, own: Option<&Value>) -> Option<Value> {
        let own = merge::metadata(self.others.get("defaultMetadata"), own);
        merge::metadata(own.as_ref(), self.others.get("overrideMetadata"))
    }

    /// Its rules likewise.
    pub(crate) fn rule_set(&self, own: Option<&Value>) -> Option<Value> {
        let own = merge::rule_set(self.others.get("defaultRuleSet"), own);
        merge::rule_set(own.as_ref(), self.others.get("overrideRuleSet"))
    }
}

/// What counts for a subject: what is found under the name nearest to it, which
/// is its own, its context's, and the empty one of all.
fn nearest<'a, T, R>(
    all: &'a BTreeMap<Arc<str>, T>,
    subject: &Subject,
    pick: impl Fn(&'a T) -> Option<R>,
) -> Option<R> {
    let find = |scope: &str| all.get(scope).and_then(&pick);
    if all.is_empty() {
        return None;
    }
    let context = subject.as_str().strip_suffix(subject.name()).unwrap_or_default();
    find(subject.as_str()).or_else(|| find(context)).or_else(|| find(""))
}

impl Registry {
    /// Whose settings there are, and which.
    pub(crate) fn configs(&self) -> impl Iterator<Item = (&str, &Config)> {
        self.configs.iter().map(|(scope, config)| (&**scope, &**config))
    }

    /// Whose modes there are, and which.
    pub(crate) fn modes(&self) -> impl Iterator<Item = (&str, Mode)> {
        self.modes.iter().map(|(scope, mode)| (&**scope, *mode))
    }

    fn setting<T>(&self, subject: &Subject, pick: impl Fn(&Config) -> Option<T>) -> Option<T> {
        nearest(&self.configs, subject, |config| pick(config))
    }

    /// The level that counts for a subject.
    pub fn level(&self, subject: &Subject) -> Level {
        self.setting(subject, |config| config.compatibility_level).unwrap_or_default()
    }

    /// Whether a subject's schemas are normalized.
    pub fn normalizes(&self, subject: &Subject) -> bool {
        self.setting(subject, |config| config.normalize).unwrap_or(false)
    }

    pub(crate) fn compatibility_group(&self, subject: &Subject) -> Option<String> {
        self.setting(subject, |config| config.compatibility_group.clone())
    }

    pub(crate) fn validates_fields(&self, subject: &Subject) -> bool {
        let flag = |config: &Config| config.others.get("validateFields").and_then(Value::as_bool);
        self.setting(subject, flag).unwrap_or(false)
    }

    /// The settings that say what schemas are registered with, if some do: of
    /// the nearest alone. Those of a subject leave no room for those of all.
    pub(super) fn additions(&self, subject: &Subject) -> Option<Arc<Config>> {
        nearest(&self.configs, subject, Some).filter(|config| config.adds()).cloned()
    }

    /// The subject that is meant by one.
    pub fn real(&self, subject: Subject) -> Subject {
        let alias = self.configs.get(subject.as_str()).and_then(|config| config.alias.as_deref());
        match alias.map(|alias| subject.beside(alias)) {
            Some(Ok(real)) => real,
            _ => subject,
        }
    }

    /// The mode that counts for a subject.
    pub fn mode(&self, subject: &Subject) -> Mode {
        if self.modes.get("") == Some(&Mode::ReadonlyOverride) {
            return Mode::ReadonlyOverride;
        }
        nearest(&self.modes, subject, |mode| Some(*mode)).unwrap_or_default()
    }

    pub(crate) fn may_change(&self, subject: &Subject) -> Result<(), Refusal> {
        if self.mode(subject).is_readonly() {
            let (name, context) = (subject.as_str(), subject.context());
            let message = format!("Subject {name} in context {context} is in read-only mode");
            return Err(Refusal::new(Code::NotPermitted, message));
        }
        Ok(())
    }

    /// The settings of all (None), or of a subject or context; its own, or
    /// (`inherit`) those that count.
    pub fn config(&self, scope: Option<&Subject>, inherit: bool) -> Result<Config, Refusal> {
        let whole = |config: Option<&Arc<Config>>| {
            let mut config = config.map(|config| (**config).clone()).unwrap_or_default();
            config.compatibility_level.get_or_insert_default();
            config
        };
        let Some(subject) = scope else { return Ok(whole(self.configs.get(""))) };
        if let Some(own) = self.configs.get(subject.as_str()) {
            let mut own = (**own).clone();
            if inherit {
                own.compatibility_level.get_or_insert(self.level(subject));
            }
            return Ok(own);
        }
        if inherit {
            return Ok(whole(nearest(&self.configs, subject, Some)));
        }
        let message = format!("Subject '{subject}' does not have subject-level compatibility configured");
        Err(Refusal::new(Code::LevelNotConfigured, message))
    }

    /// The mode of all (None), or of a subject or context.
    pub fn mode_of(&self, scope: Option<&Subject>, inherit: bool) -> Result<Mode, Refusal> {
        let Some(subject) = scope else { return Ok(self.modes.get("").copied().unwrap_or_default()) };
        match self.modes.get(subject.as_str()) {
            Some(mode) => Ok(*mode),
            None if inherit => Ok(self.mode(subject)),
            None => {
                let message = format!("Subject '{subject}' does not have subject-level mode configured");
                Err(Refusal::new(Code::ModeNotConfigured, message))
            }
        }
    }

    pub(crate) fn plan_config(
        &self,
        scope: Option<&Subject>,
        request: &Map<String, Value>,
    ) -> Judged<(Members, Vec<Change>)> {
        let key = key(scope);
        let old = self.configs.get(&key).map(|config| (**config).clone()).unwrap_or_default();
        Ok(old.changed(request)?.and_then(|(new, echo)| {
            self.settings_may_change(scope)?;
            let config = (!new.is_empty()).then(|| Arc::new(new));
            Ok((echo, vec![Change::Config { scope: key, config }]))
        }))
    }

    fn settings_may_change(&self, scope: Option<&Subject>) -> Result<(), Refusal> {
        match scope {
            Some(subject) => self.may_change(subject),
            None if self.mode_of(None, false).is_ok_and(Mode::is_readonly) => {
                Err(Refusal::new(Code::NotPermitted, "The registry is in read-only mode"))
            }
            None => Ok(()),
        }
    }

    /// The settings that were, and how they go.
    pub(crate) fn plan_no_config(&self, scope: Option<&Subject>) -> Result<(Config, Vec<Change>), Refusal> {
        self.settings_may_change(scope)?;
        let key = key(scope);
        if let Some(subject) = scope
            && !self.configs.contains_key(&key)
        {
            return Err(super::not_found(subject));
        }
        Ok((self.config(scope, false)?, vec![Change::Config { scope: key, config: None }]))
    }

    pub(crate) fn plan_mode(
        &self,
        scope: Option<&Subject>,
        mode: Option<&str>,
        force: bool,
    ) -> Result<Vec<Change>, Refusal> {
        let mode = match mode {
            None => None,
            Some(name) => {
                let known = Mode::by_name(name).filter(|mode| scope.is_none() || *mode != Mode::Forward);
                Some(known.ok_or_else(|| {
                    let valid = "READWRITE, READONLY, READONLY_OVERRIDE, and IMPORT";
                    Refusal::new(Code::InvalidMode, format!("Invalid mode. Valid values are {valid}"))
                })?)
            }
        };
        let before = match scope {
            None => self.mode_of(None, false)?,
            Some(subject) => self.mode(subject),
        };
        if mode == Some(Mode::Import) && before != Mode::Import && !force && self.has_subjects(scope) {
            let message = "Cannot import since found existing subjects";
            return Err(Refusal::new(Code::NotPermitted, message));
        }
        Ok(vec![Change::Mode { scope: key(scope), mode }])
    }

    fn has_subjects(&self, scope: Option<&Subject>) -> bool {
        match scope {
            Some(subject) if !subject.name().is_empty() => self.versions(subject, Shown::Live).is_ok(),
            Some(context) => !self.subjects(&Prefix::new(context.as_str()), Shown::Live).is_empty(),
            None => !self.subjects(&Prefix::new(":*:"), Shown::Live).is_empty(),
        }
    }

    /// The mode that was, and how it goes.
    pub(crate) fn plan_no_mode(
        &self,
        scope: Option<&Subject>,
        recursive: bool,
    ) -> Result<(Option<Mode>, Vec<Change>), Refusal> {
        let key = key(scope);
        let own = self.modes.get(&key).copied();
        let mut changes = vec![Change::Mode { scope: key, mode: None }];
        if recursive {
            let prefix = Prefix::new(scope.map_or(":*:", Subject::as_str));
            let below = self.modes.keys().filter(|name| !name.is_empty() && prefix.matches(name));
            changes.extend(below.map(|name| Change::Mode { scope: name.clone(), mode: None }));
        } else if let Some(subject) = scope
            && own.is_none()
        {
            return Err(super::not_found(subject));
        }
        let old = if scope.is_none() { Some(own.unwrap_or_default()) } else { own };
        Ok((old, changes))
    }
}

fn key(scope: Option<&Subject>) -> Arc<str> {
    scope.map_or_else(|| "".into(), Subject::shared)
}

fn invalid_level() -> Refusal {
    let valid = "none, backward, forward, full, backward_transitive, forward_transitive, and full_transitive";
    Refusal::new(Code::InvalidLevel, format!("Invalid compatibility level. Valid values are {valid}"))
}
