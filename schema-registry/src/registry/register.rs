//! What registering changes, and all it has to know beforehand.

use std::collections::HashSet;
use std::sync::Arc;

use serde::Serialize;

use super::{Config, Found, Registry, SchemaId, Shown, Version, Versions, Which};
use crate::change::Change;
use crate::compatibility::Level;
use crate::content::{Content, NewSchema, Parsed, Reference, SchemaType};
use crate::error::{Code, Refusal};
use crate::numbering;
use crate::registry::Mode;
use crate::subject::Subject;

/// What a registration came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Registered {
    /// The schema's id.
    pub id: SchemaId,
    /// Its version in the subject.
    pub version: u32,
}

/// A version with the texts that are needed to parse it, in order of dependence.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) version: u32,
    pub(crate) content: Arc<Content>,
    pub(crate) references: Vec<Arc<Content>>,
}

/// All that a registration or a comparison depends on; worked out under a
/// lock, used without it, and looked at again before anything is changed.
#[derive(Clone, Debug)]
pub(crate) struct Demand {
    /// With numbers where `latest` was meant.
    pub(crate) resolved: Vec<Reference>,
    pub(crate) references: Vec<Arc<Content>>,
    pub(crate) normalize: bool,
    pub(crate) strict: bool,
    pub(crate) level: Level,
    pub(crate) validate_fields: bool,
    /// Versions to compare with, oldest first.
    pub(crate) earlier: Vec<Source>,
    /// The subject's last version, whose metadata and rules go on where a new
    /// one names none.
    pub(crate) last: Option<Arc<Content>>,
    /// The number of the subject's next version.
    pub(crate) next: u32,
    /// Settings that give metadata or rules to what is registered.
    pub(crate) additions: Option<Arc<Config>>,
    /// Differs if anything of this may have changed.
    pub(crate) stamp: Stamp,
}

/// The last changes of a subject and of the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    subject: u64,
    settings: u64,
}

/// Of references to references.
const DEEPEST: usize = 64;
/// Schemas that one may draw in.
const MOST: usize = 2_000;
/// And their texts.
const MOST_BYTES: usize = 16 << 20;

impl Demand {
    /// As it is registered: where it has no metadata or rules of its own, with
    /// those of the last version; between those that settings give.
    pub(crate) fn completed(&self, parsed: Parsed) -> Parsed {
        let (own, last) = (&parsed.content, self.last.as_deref());
        let metadata = own.metadata.as_deref().or(last.and_then(|last| last.metadata.as_deref()));
        let rule_set = own.rule_set.as_deref().or(last.and_then(|last| last.rule_set.as_deref()));
        let (metadata, rule_set) = match &self.additions {
            Some(config) => (config.metadata(metadata), config.rule_set(rule_set)),
            None if metadata.is_some() == own.metadata.is_some() && rule_set.is_some() == own.rule_set.is_some() => {
                return parsed;
            }
            None => (metadata.cloned(), rule_set.cloned()),
        };
        parsed.with(metadata, rule_set)
    }

    /// Where metadata tell the version's number, with the right one.
    pub(crate) fn numbered(&self, parsed: Parsed) -> Parsed {
        let metadata = parsed.content.metadata.as_deref();
        if !numbering::is_numbered(metadata) {
            return parsed;
        }
        let (metadata, rule_set) = (metadata.cloned(), parsed.content.rule_set.as_deref().cloned());
        parsed.with(Some(numbering::numbered(metadata, self.next)), rule_set)
    }
}

fn next_version(all: &[Version]) -> u32 {
    all.last().map_or(1, |version| version.version + 1)
}

impl NewSchema {
    /// Whether a version that is there already is all that is asked for.
    pub(crate) fn is_answered_by(&self, found: &Found, importing: bool) -> Option<Registered> {
        let Version { version, id, .. } = found.version;
        let wants = |wanted: Option<i32>, has: u32| wanted.is_none_or(|wanted| wanted < 1 || wanted as u32 == has);
        let is_it = wants(self.id, id) && (!importing || wants(self.version, version));
        is_it.then_some(Registered { id, version })
    }
}

impl Registry {
    pub(crate) fn stamp(&self, subject: &Subject) -> Stamp {
        self.stamp_of(self.subjects.get(subject.as_str()))
    }

    fn stamp_of(&self, versions: Option<&Versions>) -> Stamp {
        Stamp { subject: versions.map_or(0, |versions| versions.changed), settings: self.settings_changes }
    }

    /// What says something of no text says it of the last version's (None: it has
    /// one, or says nothing, which is more likely a mistake than meant).
    pub(crate) fn filled(&self, subject: &Subject, new: &NewSchema) -> Result<Option<NewSchema>, Refusal> {
        let has = new.schema.as_deref().is_some_and(|text| !text.trim().is_empty());
        let says = new.metadata.is_some() || new.rule_set.is_some();
        if has || !says || self.mode(subject) == Mode::Import {
            return Ok(None);
        }
        SchemaType::by_name(new.schema_type.as_deref())?;
        let last = self.version(subject, Which::Latest, Shown::Live);
        let last = last.map_err(|_| Refusal::new(Code::InvalidSchema, "Empty schema"))?.content;
        Ok(Some(NewSchema {
            schema: Some(last.text.to_string()),
            schema_type: Some(last.schema_type.name().into()),
            references: Some(last.references.to_vec()),
            ..new.clone()
        }))
    }

    /// What registering `new` depends on.
    pub(crate) fn demand(&self, subject: &Subject, new: &NewSchema, normalize: bool) -> Result<Demand, Refusal> {
        let mut resolved = new.references.clone().unwrap_or_default();
        for reference in &mut resolved {
            if reference.version == -1 {
                let found = self.version(&subject.beside(&reference.subject)?, Which::Latest, Shown::Live);
                let found = found.map_err(|_| unresolved(reference))?;
                reference.version = found.version.version as i32;
            }
        }
        let importing = self.mode(subject) == Mode::Import;
        let mut drawn = Drawn::default();
        // What is imported may refer to what is deleted by now.
        self.draw(subject, &resolved, Shown::with_deleted(importing), 0, &mut drawn)?;
        let level = self.level(subject);
        // Once: of many subjects it takes a while to find one.
        let versions = self.subjects.get(subject.as_str());
        let all = versions.map_or(&[][..], |versions| &versions.all);
        let last = all.iter().rev().find(|version| !version.deleted);
        let last = last.and_then(|version| self.schema(subject.context(), version.id)).cloned();
        // What is imported is as it was elsewhere.
        let additions = if importing { None } else { self.additions(subject) };
        Ok(Demand {
            references: drawn.contents,
            resolved,
            normalize: normalize || self.normalizes(subject),
            strict: !importing,
            level,
            validate_fields: self.validates_fields(subject),
            earlier: self.earlier(subject, all, level, new, last.as_deref(), additions.as_deref())?,
            last,
            next: next_version(all),
            additions,
            stamp: self.stamp_of(versions),
        })
    }

    /// Gathers what references need, before what needs it.
    fn draw(
        &self,
        subject: &Subject,
        references: &[Reference],
        shown: Shown,
        depth: usize,
        drawn: &mut Drawn,
    ) -> Result<(), Refusal> {
        for reference in references {
            let of = subject.beside(&reference.subject).map_err(|_| unresolved(reference))?;
            let number = u32::try_from(reference.version).map_err(|_| unresolved(reference))?;
            let found = self.version(&of, Which::Number(number), shown).map_err(|_| unresolved(reference))?;
            let key = (of.shared(), number);
            if drawn.open.contains(&key) {
                let message =
                    format!("reference {:?} to subject {of}, version {number} goes in a circle", reference.name);
                return Err(Refusal::new(Code::InvalidSchema, message));
            }
            if !drawn.seen.insert(key.clone()) {
                continue;
            }
            drawn.bytes += found.content.text.len();
            if depth >= DEEPEST || drawn.seen.len() > MOST || drawn.bytes > MOST_BYTES {
                return Err(Refusal::new(Code::InvalidSchema, "references draw in too many schemas, or too deep"));
            }
            drawn.open.push(key);
            // What a registered schema refers to is kept, deleted or not.
            self.draw(&of, &found.content.references, Shown::All, depth + 1, drawn)?;
            drawn.open.pop();
            drawn.contents.push(found.content);
        }
        Ok(())
    }

    /// A version with what is needed to parse it.
    pub(crate) fn source(&self, found: &Found) -> Result<Source, Refusal> {
        let mut drawn = Drawn::default();
        self.draw(&found.subject, &found.content.references, Shown::All, 0, &mut drawn)?;
        Ok(Source { version: found.version.version, content: found.content.clone(), references: drawn.contents })
    }

    fn earlier(
        &self,
        subject: &Subject,
        all: &[Version],
        level: Level,
        new: &NewSchema,
        last: Option<&Content>,
        additions: Option<&Config>,
    ) -> Result<Vec<Source>, Refusal> {
        if level == Level::None {
            return Ok(Vec::new());
        }
        let group = self.compatibility_group(subject);
        let mark = |metadata: Option<&serde_json::Value>| {
            let group = group.as_deref()?;
            metadata?.get("properties")?.get(group)?.as_str().map(str::to_owned)
        };
        let own = new.metadata.as_ref().or(last.and_then(|last| last.metadata.as_deref()));
        let given = additions.filter(|_| group.is_some()).and_then(|config| config.metadata(own));
        let wanted = mark(given.as_ref().or(own));
        let live = all.iter().filter(|version| !version.deleted);
        let mut found: Vec<Found> = live
            .filter_map(|version| self.found(subject, *version))
            .filter(|found| group.is_none() || mark(found.content.metadata.as_deref()) == wanted)
            .collect();
        if !level.is_transitive() {
            found.drain(..found.len().saturating_sub(1));
        }
        found.iter().map(|found| self.source(found)).collect()
    }

    /// One version to compare with, whatever the level says of others.
    pub(crate) fn demand_against(
        &self,
        subject: &Subject,
        which: Which,
        new: &NewSchema,
        normalize: bool,
    ) -> Result<Demand, Refusal> {
        let mut demand = self.demand(subject, new, normalize)?;
        demand.earlier = match self.version(subject, which, Shown::Live) {
            Ok(found) => vec![self.source(&found)?],
            // Nothing is compatible with all.
            Err(_) if which == Which::Latest => Vec::new(),
            Err(_) => return Err(super::version_not_found(which)),
        };
        Ok(demand)
    }

    /// Where a schema is a version already; without metadata and rules, any
    /// version of the same text and references will do, the newest first.
    pub(crate) fn find(&self, subject: &Subject, parsed: &Parsed, shown: Shown) -> Option<Found> {
        self.find_among(self.all(subject.as_str()), subject, parsed, shown)
    }

    fn find_among(&self, all: &[Version], subject: &Subject, parsed: &Parsed, shown: Shown) -> Option<Found> {
        let id = self.contexts.get(subject.context()).and_then(|of| of.ids.get(&parsed.guid));
        let shown = all.iter().rev().filter(|version| shown.shows(version));
        let found = shown.filter_map(|version| self.found(subject, *version));
        let mut same = None;
        for found in found {
            if Some(&found.version.id) == id {
                return Some(found);
            }
            let content = &found.content;
            let is_it = if parsed.bare { Content::is_same_schema } else { Content::is_same_but_numbered };
            if *content == parsed.content || is_it(content, &parsed.content) {
                same.get_or_insert(found);
            }
        }
        same
    }

    /// What registering does, once nothing speaks against the schema itself:
    /// the answer, and what must be durable first.
    pub(crate) fn plan_register(
        &self,
        subject: &Subject,
        new: &NewSchema,
        parsed: &Parsed,
        mode: Mode,
    ) -> Result<(Registered, Vec<Change>), Refusal> {
        let given = new.id.filter(|&id| id >= 0);
        let all = self.all(subject.as_str());
        if let Some(found) = self.find_among(all, subject, parsed, Shown::Live)
            && let Some(registered) = new.is_answered_by(&found, mode == Mode::Import)
        {
            return Ok((registered, Vec::new()));
        }
        may_register(subject, given.is_some(), mode)?;
        let next = next_version(all);
        let wanted = new.version.filter(|&version| version > 0).map(|version| version as u32);
        let context = self.contexts.get(subject.context());
        let known = context.and_then(|of| of.ids.get(&parsed.guid)).copied();
        let shared = subject.shared();
        if let (Some(given), true) = (given, mode == Mode::Import) {
            return self.plan_import(subject, given as u32, wanted.unwrap_or(next), parsed);
        }
        if let Some(wanted) = wanted
            && wanted != next
        {
            let message = format!("Version {wanted} is not one more than previous version {}", next - 1);
            return Err(Refusal::new(Code::InvalidSchema, message));
        }
        let mut changes = Vec::with_capacity(2);
        let id = match known {
            Some(id) => id,
            None => {
                let last = context.map_or(0, |of| of.last_id);
                let id = last.checked_add(1).filter(|id| i32::try_from(*id).is_ok());
                let id = id.ok_or_else(|| Refusal::new(Code::Full, "schema ids are used up"))?;
                let content = parsed.content.clone();
                changes.push(Change::Schema { context: subject.context().into(), id, content });
                id
            }
        };
        changes.push(Change::Version { subject: shared.clone(), version: next, id, deleted: false });
        // The schema is back: its deleted version makes room, unless it is needed.
        let old = all.iter().filter(|version| version.deleted && version.id == id);
        let needed = |version: &Version| self.referrers.contains_key(&(shared.clone(), version.version));
        let gone = old.filter(|version| !needed(version));
        changes.extend(gone.map(|v| Change::Gone { subject: shared.clone(), version: v.version }));
        Ok((Registered { id, version: next }, changes))
    }

    /// Whether all that a schema refers to is (still) there.
    pub(crate) fn references_are_there(&self, subject: &Subject, content: &Content, mode: Mode) -> bool {
        let shown = Shown::with_deleted(mode == Mode::Import);
        content.references.iter().all(|reference| {
            let of = subject.beside(&reference.subject);
            let number = u32::try_from(reference.version);
            matches!((of, number), (Ok(of), Ok(n)) if self.version(&of, Which::Number(n), shown).is_ok())
        })
    }

    fn plan_import(
        &self,
        subject: &Subject,
        id: SchemaId,
        version: u32,
        parsed: &Parsed,
    ) -> Result<(Registered, Vec<Change>), Refusal> {
        let refuse = |why: String| Err(Refusal::new(Code::NotPermitted, why));
        if id == 0 {
            return refuse("0 is no id of a schema".into());
        }
        let mut changes = Vec::with_capacity(2);
        match self.schema(subject.context(), id) {
            Some(content) if *content == parsed.content => {}
            Some(_) => return refuse(format!("Overwrite new schema with id {id} is not permitted.")),
            None => {
                let content = parsed.content.clone();
                changes.push(Change::Schema { context: subject.context().into(), id, content });
            }
        }
        if let Some(there) = self.number(subject.as_str(), version)
            && there.id != id
        {
            return refuse(format!(
                "Version {version} of subject {subject} is the schema with id {} already",
                there.id
            ));
        }
        changes.push(Change::Version { subject: subject.shared(), version, id, deleted: false });
        Ok((Registered { id, version }, changes))
    }
}

/// Whether the mode lets a schema in that comes with an id, or without.
fn may_register(subject: &Subject, with_id: bool, mode: Mode) -> Result<(), Refusal> {
    let wrong = match (with_id, mode) {
        (true, Mode::Import) | (false, Mode::Readwrite) => return Ok(()),
        (_, Mode::Readonly | Mode::ReadonlyOverride | Mode::Forward) => "in read-only mode",
        (true, _) => "not in import mode",
        (false, _) => "not in read-write mode",
    };
    let (name, context) = (subject.as_str(), subject.context());
    Err(Refusal::new(Code::NotPermitted, format!("Subject {name} in context {context} is {wrong}")))
}

#[derive(Default)]
struct Drawn {
    contents: Vec<Arc<Content>>,
    seen: HashSet<(Arc<str>, u32)>,
    open: Vec<(Arc<str>, u32)>,
    bytes: usize,
}

fn unresolved(reference: &Reference) -> Refusal {
    let Reference { name, subject, version } = reference;
    let message = format!("Invalid schema: reference {name:?} to subject {subject:?}, version {version} is not there");
    Refusal::new(Code::InvalidSchema, message)
}
