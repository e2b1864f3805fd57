//! Subjects, versions, ids and settings, in memory and pure: what a request
//! changes is worked out first, made durable by the store, then applied.

mod delete;
mod register;
mod settings;

pub use register::Registered;
pub(crate) use register::{Demand, Source};
pub use settings::{Config, Mode};

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::Serialize;

use crate::change::Change;
use crate::content::{Content, Guid};
use crate::error::{Code, Refusal};
use crate::subject::{Prefix, Subject, split};

/// An id of a schema over all subjects of a context; from 1, never given again.
pub type SchemaId = u32;

/// A version of a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// From 1.
    pub version: u32,
    /// Its schema.
    pub id: SchemaId,
    /// Softly: it can still be asked for.
    pub deleted: bool,
}

/// Which of a subject's versions is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// This one.
    Number(u32),
    /// The last.
    Latest,
}

/// Which versions are looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shown {
    /// Those that are not deleted.
    #[default]
    Live,
    /// All but those that are gone for good.
    All,
    /// Only softly deleted ones.
    Deleted,
}

/// A version with its content.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its subject.
    pub subject: Subject,
    /// Number and id.
    pub version: Version,
    /// What the id stands for.
    pub content: Arc<Content>,
}

/// How much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Subjects with a version that is not deleted.
    pub subjects: usize,
    /// Ids, over all contexts.
    pub schemas: usize,
    /// Versions, softly deleted ones too.
    pub versions: usize,
}

/// Subject and version.
type VersionKey = (Arc<str>, u32);
/// Context and id.
type SchemaKey = (Arc<str>, SchemaId);

/// The registry's content.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    contexts: BTreeMap<Arc<str>, Context>,
    subjects: BTreeMap<Arc<str>, Versions>,
    configs: BTreeMap<Arc<str>, Arc<Config>>,
    modes: BTreeMap<Arc<str>, Mode>,
    /// Schemas that refer to a version.
    referrers: HashMap<VersionKey, Vec<SchemaKey>>,
    /// Counts changes of versions; each subject remembers its last.
    changes: u64,
    /// Counts changes of settings.
    settings_changes: u64,
    /// Versions of all subjects, deleted ones too.
    count: usize,
}

#[derive(Clone, Debug, Default)]
struct Context {
    schemas: HashMap<SchemaId, Held>,
    ids: HashMap<Guid, SchemaId>,
    last_id: SchemaId,
    listed: bool,
}

#[derive(Clone, Debug)]
struct Held {
    content: Arc<Content>,
    /// Where it is a version, in order.
    uses: Vec<(Arc<str>, u32)>,
}

#[derive(Clone, Debug, Default)]
struct Versions {
    /// In order.
    all: Vec<Version>,
    /// The change by which it is as it is.
    changed: u64,
}

/// Makes room in a list that mostly stays at one: a hundred thousand of them.
fn one_more<T>(list: &mut Vec<T>) {
    if list.is_empty() {
        list.reserve_exact(1);
    }
}

impl Shown {
    fn shows(self, version: &Version) -> bool {
        match self {
            Shown::Live => !version.deleted,
            Shown::All => true,
            Shown::Deleted => version.deleted,
        }
    }

    /// `deleted=true`.
    pub fn with_deleted(deleted: bool) -> Self {
        if deleted { Shown::All } else { Shown::Live }
    }
}

impl Registry {
    /// Applies what is durable; also how a log is read back. Applying twice does no harm.
    pub(crate) fn apply(&mut self, change: &Change) {
        match change {
            Change::Schema { context, id, content } => {
                let references = self.reference_keys(context, content);
                let of = self.contexts.entry(context.clone()).or_default();
                of.listed = true;
                of.last_id = of.last_id.max(*id);
                if of.schemas.contains_key(id) {
                    return;
                }
                of.ids.entry(content.guid()).or_insert(*id);
                of.schemas.insert(*id, Held { content: content.clone(), uses: Vec::new() });
                for key in references {
                    self.referrers.entry(key).or_default().push((context.clone(), *id));
                }
            }
            Change::Version { subject, version, id, deleted } => {
                let new = Version { version: *version, id: *id, deleted: *deleted };
                let entry = self.subjects.entry(subject.clone());
                let name = entry.key().clone();
                let versions = entry.or_default();
                self.changes += 1;
                versions.changed = self.changes;
                match versions.all.binary_search_by_key(version, |v| v.version) {
                    Ok(place) => versions.all[place] = new,
                    Err(place) => {
                        one_more(&mut versions.all);
                        versions.all.insert(place, new);
                        self.count += 1;
                    }
                }
                let context = split(subject).0;
                if !self.contexts.contains_key(context) {
                    self.contexts.insert(context.into(), Context::default());
                }
                let Some(context) = self.contexts.get_mut(context) else { return };
                context.listed = true;
                if let Some(held) = context.schemas.get_mut(id) {
                    let place = held.uses.binary_search_by(|(s, v)| (&**s, *v).cmp(&(&**subject, *version)));
                    if let Err(place) = place {
                        one_more(&mut held.uses);
                        held.uses.insert(place, (name, *version));
                    }
                }
            }
            Change::Gone { subject, version } => self.forget(subject, *version),
            Change::Config { scope, config } => {
                self.settings_changes += 1;
                match config {
                    Some(config) => self.configs.insert(scope.clone(), config.clone()),
                    None => self.configs.remove(scope),
                };
            }
            Change::Mode { scope, mode } => {
                self.settings_changes += 1;
                match mode {
                    Some(mode) => self.modes.insert(scope.clone(), *mode),
                    None => self.modes.remove(scope),
                };
            }
            Change::LastId { context, id } => {
                let of = self.contexts.entry(context.clone()).or_default();
                of.listed = true;
                of.last_id = of.last_id.max(*id);
            }
            Change::Unlisted { context } => {
                if let Some(of) = self.contexts.get_mut(context) {
                    of.listed = false;
                }
            }
        }
    }

    fn forget(&mut self, subject: &Arc<str>, version: u32) {
        let Some(versions) = self.subjects.get_mut(subject) else { return };
        self.changes += 1;
        versions.changed = self.changes;
        let Ok(place) = versions.all.binary_search_by_key(&version, |v| v.version) else { return };
        let gone = versions.all.remove(place);
        self.count -= 1;
        if versions.all.is_empty() {
            self.subjects.remove(subject);
        }
        let context: Arc<str> = split(subject).0.into();
        let Some(of) = self.contexts.get_mut(&context) else { return };
        let Some(held) = of.schemas.get_mut(&gone.id) else { return };
        held.uses.retain(|(s, v)| (&**s, *v) != (&**subject, version));
        if !held.uses.is_empty() {
            return;
        }
        // The id means nothing any more, and will not mean anything again.
        let Some(held) = of.schemas.remove(&gone.id) else { return };
        let guid = held.content.guid();
        if of.ids.get(&guid) == Some(&gone.id) {
            of.ids.remove(&guid);
        }
        for key in self.reference_keys(&context, &held.content) {
            if let Some(referrers) = self.referrers.get_mut(&key) {
                referrers.retain(|(c, id)| (&**c, *id) != (&*context, gone.id));
                if referrers.is_empty() {
                    self.referrers.remove(&key);
                }
            }
        }
    }

    fn reference_keys(&self, context: &str, content: &Content) -> Vec<(Arc<str>, u32)> {
        if content.references.is_empty() {
            return Vec::new();
        }
        let owner = Subject::of(context, "");
        let key = |reference: &crate::content::Reference| {
            let subject = owner.beside(&reference.subject).ok()?;
            Some((subject.shared(), u32::try_from(reference.version).ok()?))
        };
        let mut keys: Vec<_> = content.references.iter().filter_map(key).collect();
        keys.sort();
        keys.dedup();
        keys
    }

    /// Everything, as changes to an empty registry.
    pub(crate) fn dump(&self) -> Vec<Change> {
        let mut all = Vec::new();
        for (context, of) in &self.contexts {
            let mut ids: Vec<_> = of.schemas.iter().collect();
            ids.sort_by_key(|(id, _)| **id);
            for (id, held) in ids {
                all.push(Change::Schema { context: context.clone(), id: *id, content: held.content.clone() });
            }
            all.push(Change::LastId { context: context.clone(), id: of.last_id });
        }
        for (subject, versions) in &self.subjects {
            for &Version { version, id, deleted } in &versions.all {
                all.push(Change::Version { subject: subject.clone(), version, id, deleted });
            }
        }
        all.extend(self.configs.iter().map(|(s, c)| Change::Config { scope: s.clone(), config: Some(c.clone()) }));
        all.extend(self.modes.iter().map(|(s, m)| Change::Mode { scope: s.clone(), mode: Some(*m) }));
        let unlisted = self.contexts.iter().filter(|(_, of)| !of.listed);
        all.extend(unlisted.map(|(context, _)| Change::Unlisted { context: context.clone() }));
        all
    }

    /// What an id stands for in a context.
    pub fn schema(&self, context: &str, id: SchemaId) -> Option<&Arc<Content>> {
        Some(&self.contexts.get(context)?.schemas.get(&id)?.content)
    }

    /// By what makes it itself: context and id, of every context that has it.
    pub fn by_guid(&self, guid: &str) -> Vec<(&str, SchemaId)> {
        let Some(guid) = Guid::parse(guid) else { return Vec::new() };
        self.contexts.iter().filter_map(|(name, context)| Some((&**name, *context.ids.get(&guid)?))).collect()
    }

    /// The greatest id that was given in a context.
    pub fn last_id(&self, context: &str) -> SchemaId {
        self.contexts.get(context).map_or(0, |of| of.last_id)
    }

    /// Contexts, the default one first.
    pub fn contexts(&self) -> Vec<&str> {
        let listed = self.contexts.iter().filter(|(name, of)| of.listed && &***name != ".");
        std::iter::once(".").chain(listed.map(|(name, _)| &**name)).collect()
    }

    /// Where an id is a version.
    pub fn uses(&self, context: &str, id: SchemaId, shown: Shown) -> Option<Vec<(&str, u32)>> {
        let held = self.contexts.get(context)?.schemas.get(&id)?;
        let shows = |subject: &str, version: u32| self.number(subject, version).is_some_and(|v| shown.shows(&v));
        let uses = held.uses.iter().filter(|(subject, version)| shows(subject, *version));
        Some(uses.map(|(subject, version)| (&**subject, *version)).collect())
    }

    fn number(&self, subject: &str, version: u32) -> Option<Version> {
        let all = self.all(subject);
        all.binary_search_by_key(&version, |v| v.version).ok().map(|place| all[place])
    }

    fn all(&self, subject: &str) -> &[Version] {
        self.subjects.get(subject).map_or(&[], |versions| &versions.all)
    }

    /// Subjects that begin so, sorted. Deleted: those of which all is.
    pub fn subjects(&self, prefix: &Prefix, shown: Shown) -> Vec<&str> {
        let shows = |versions: &Versions| match shown {
            Shown::Deleted => versions.all.iter().all(|version| version.deleted),
            shown => versions.all.iter().any(|version| shown.shows(version)),
        };
        let matching = self.subjects.iter().filter(|(name, versions)| prefix.matches(name) && shows(versions));
        matching.map(|(name, _)| &**name).collect()
    }

    /// A subject's versions, oldest first; refused if it has none of that kind.
    pub fn versions(&self, subject: &Subject, shown: Shown) -> Result<Vec<Version>, Refusal> {
        let all: Vec<Version> = self.all(subject.as_str()).iter().filter(|v| shown.shows(v)).copied().collect();
        if all.is_empty() { Err(not_found(subject)) } else { Ok(all) }
    }

    /// One version.
    pub fn version(&self, subject: &Subject, which: Which, shown: Shown) -> Result<Found, Refusal> {
        let versions = self.versions(subject, shown)?;
        let found = match which {
            Which::Latest => versions.last(),
            Which::Number(number) => versions.iter().find(|v| v.version == number),
        };
        let found = found.copied().ok_or_else(|| version_not_found(which))?;
        self.found(subject, found).ok_or_else(|| version_not_found(which))
    }

    fn found(&self, subject: &Subject, version: Version) -> Option<Found> {
        let content = self.schema(subject.context(), version.id)?.clone();
        Some(Found { subject: subject.clone(), version, content })
    }

    /// All versions of subjects that begin so, by subject and version.
    pub fn everything(&self, prefix: &Prefix, shown: Shown, latest_only: bool) -> Vec<Found> {
        let mut all = Vec::new();
        for (name, versions) in self.subjects.iter().filter(|(name, _)| prefix.matches(name)) {
            let Ok(subject) = Subject::parse(name) else { continue };
            let mut of: Vec<Found> = versions
                .all
                .iter()
                .filter(|version| shown.shows(version))
                .filter_map(|version| self.found(&subject, *version))
                .collect();
            if latest_only {
                of.drain(..of.len().saturating_sub(1));
            }
            all.append(&mut of);
        }
        all
    }

    /// Ids of schemas that refer to a version.
    pub fn referenced_by(&self, found: &Found, shown: Shown) -> Vec<SchemaId> {
        let key = (found.subject.shared(), found.version.version);
        let referrers = self.referrers.get(&key).map_or(&[][..], |all| all);
        let is_used = |context: &str, id| self.uses(context, id, shown).is_some_and(|uses| !uses.is_empty());
        let mut ids: Vec<_> = referrers.iter().filter(|(c, id)| is_used(c, *id)).map(|(_, id)| *id).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Grows with every change of a version.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Versions of all subjects, deleted ones too.
    pub fn count(&self) -> usize {
        self.count
    }

    /// How much there is.
    pub fn counts(&self) -> Counts {
        let is_live = |versions: &&Versions| versions.all.iter().any(|version| !version.deleted);
        Counts {
            subjects: self.subjects.values().filter(is_live).count(),
            schemas: self.contexts.values().map(|context| context.schemas.len()).sum(),
            versions: self.count,
        }
    }
}

pub(crate) fn not_found(subject: &Subject) -> Refusal {
    Refusal::new(Code::SubjectNotFound, format!("Subject '{subject}' not found."))
}

pub(crate) fn version_not_found(which: Which) -> Refusal {
    let shown = match which {
        Which::Number(number) => number.to_string(),
        Which::Latest => "latest".into(),
    };
    Refusal::new(Code::VersionNotFound, format!("Version {shown} not found."))
}

#[cfg(test)]
mod tests;
