//! `/subjects`: register, look up, list, delete.

use std::sync::Arc;

use axum::extract::State;
use serde_json::Value;

use super::App;
use super::answer::{Answer, Entity, Failure, bare, ok, whole};
use super::ask::Ask;
use super::schemas::text;
use super::tags::Changes;
use crate::content::NewSchema;
use crate::error::{Code, Refusal};
use crate::registry::{Found, Shown, Which};
use crate::subject::Subject;

type Shared = State<Arc<App>>;

fn shown(ask: &Ask) -> Shown {
    if ask.flag("deletedOnly") { Shown::Deleted } else { Shown::with_deleted(ask.flag("deleted")) }
}

pub(super) async fn list(State(app): Shared, ask: Ask) -> Answer {
    let (prefix, shown) = (ask.prefix()?, shown(&ask));
    let all =
        app.store.read(|registry| registry.subjects(&prefix, shown).into_iter().map(str::to_owned).collect::<Vec<_>>());
    ok(&ask.page(all, None)?)
}

pub(super) async fn lookup(State(app): Shared, ask: Ask) -> Answer {
    let subject = ask.subject(&app)?;
    let (normalize, shown) = (ask.flag("normalize"), Shown::with_deleted(ask.flag("deleted")));
    let (resolved, unknown) = (ask.resolved(), ask.accepts_unknown());
    let new: NewSchema = ask.json(&app).await?;
    let found = app.store.lookup(subject, new, normalize, shown).await?;
    let text = text(&app, resolved, &found).await?;
    whole(&Entity::of(&found, &text, unknown))
}

pub(super) async fn register(State(app): Shared, ask: Ask) -> Answer {
    let subject = ask.subject(&app)?;
    let (normalize, unknown) = (ask.flag("normalize"), ask.accepts_unknown());
    let new: NewSchema = ask.json(&app).await?;
    registered(&app, subject, new, normalize, unknown).await
}

/// A version with other tags, metadata or rules, as the next one.
pub(super) async fn tag(State(app): Shared, ask: Ask) -> Answer {
    let (found, unknown) = (found(&app, &ask)?, ask.accepts_unknown());
    let changes: Changes = ask.json(&app).await?;
    registered(&app, found.subject.clone(), changes.of(&found.content)?, false, unknown).await
}

async fn registered(app: &App, subject: Subject, new: NewSchema, normalize: bool, unknown: bool) -> Answer {
    let registered = app.store.register_new(subject.clone(), new, normalize).await?;
    if !unknown {
        return ok(&registered);
    }
    // Newer clients keep this as the schema: it must be whole.
    let which = Which::Number(registered.version);
    let found = app.store.read(|registry| registry.version(&subject, which, Shown::All))?;
    whole(&Entity::of(&found, &found.content.text, true))
}

pub(super) async fn versions(State(app): Shared, ask: Ask) -> Answer {
    let subject = ask.subject(&app)?;
    let negative = ask.flag("deletedAsNegative");
    let shown = if negative { Shown::All } else { shown(&ask) };
    let all = app.store.read(|registry| registry.versions(&subject, shown))?;
    let number = |version: &crate::Version| {
        let number = i64::from(version.version);
        if negative && version.deleted { -number } else { number }
    };
    ok(&ask.page(all.iter().map(number).collect(), None)?)
}

fn found(app: &App, ask: &Ask) -> Result<Found, Failure> {
    let (which, subject) = (ask.which()?, ask.subject(app)?);
    let shown = Shown::with_deleted(ask.flag("deleted"));
    Ok(app.store.read(|registry| registry.version(&subject, which, shown))?)
}

pub(super) async fn version(State(app): Shared, ask: Ask) -> Answer {
    let found = found(&app, &ask)?;
    let text = text(&app, ask.resolved(), &found).await?;
    whole(&Entity::of(&found, &text, ask.accepts_unknown()))
}

pub(super) async fn version_text(State(app): Shared, ask: Ask) -> Answer {
    let found = found(&app, &ask)?;
    bare(&text(&app, ask.resolved(), &found).await?)
}

pub(super) async fn referenced_by(State(app): Shared, ask: Ask) -> Answer {
    let found = found(&app, &ask)?;
    let shown = Shown::with_deleted(ask.flag("deleted"));
    ok(&ask.page(app.store.read(|registry| registry.referenced_by(&found, shown)), None)?)
}

pub(super) async fn delete(State(app): Shared, ask: Ask) -> Answer {
    let subject = ask.subject(&app)?;
    ok(&app.store.delete_subject(subject, ask.flag("permanent")).await?)
}

pub(super) async fn delete_version(State(app): Shared, ask: Ask) -> Answer {
    let (which, subject) = (ask.which()?, ask.subject(&app)?);
    ok(&app.store.delete_version(subject, which, ask.flag("permanent")).await?)
}

/// The newest version that has all of some properties.
pub(super) async fn by_metadata(State(app): Shared, ask: Ask) -> Answer {
    let subject = ask.subject(&app)?;
    let shown = Shown::with_deleted(ask.flag("deleted"));
    let wanted: Vec<(&str, &str)> = ask.texts("key").into_iter().zip(ask.texts("value")).collect();
    let found = app.store.read(|registry| {
        let versions = registry.versions(&subject, shown)?;
        let has = |found: &Found| {
            let properties = found.content.metadata.as_ref().and_then(|metadata| metadata.get("properties"));
            let value = |key| properties.and_then(|properties| properties.get(key)).and_then(Value::as_str);
            wanted.iter().all(|(key, wanted)| value(key) == Some(*wanted))
        };
        let mut newest = versions.iter().rev();
        newest
            .find_map(|v| registry.version(&subject, Which::Number(v.version), shown).ok().filter(has))
            .ok_or_else(|| Refusal::new(Code::SchemaNotFound, "Schema not found"))
    })?;
    let text = text(&app, ask.resolved(), &found).await?;
    whole(&Entity::of(&found, &text, ask.accepts_unknown()))
}
