//! `/schemas`: by id, by guid, all of them.

use std::sync::Arc;

use axum::extract::State;
use serde_json::json;

use super::App;
use super::answer::{Answer, Entity, Failure, bare, ok, whole};
use super::ask::Ask;
use crate::content::SchemaType;
use crate::error::{Code, Refusal};
use crate::registry::{Found, Registry, SchemaId, Shown, Version};
use crate::subject::Subject;

type Shared = State<Arc<App>>;

/// At most, of a list of whole schemas.
const MOST: usize = 1_000;

pub(super) async fn types() -> Answer {
    ok(&SchemaType::ALL.map(SchemaType::name))
}

/// What an id stands for: in the context that is named, or of the subject that is.
fn find(registry: &Registry, scope: &Subject, id: SchemaId) -> Result<Found, Failure> {
    let version = Version { version: 0, id, deleted: false };
    if let Some(content) = registry.schema(scope.context(), id) {
        return Ok(Found { subject: Subject::of(scope.context(), ""), version, content: content.clone() });
    }
    for context in registry.contexts() {
        let subject = Subject::of(context, scope.name());
        let uses = registry.uses(context, id, Shown::All).unwrap_or_default();
        if let Some(content) = registry.schema(context, id)
            && uses.iter().any(|(user, _)| *user == subject.as_str())
        {
            return Ok(Found { subject, version, content: content.clone() });
        }
    }
    Err(Refusal::new(Code::SchemaNotFound, format!("Schema {id} not found")).into())
}

fn found(app: &App, ask: &Ask) -> Result<Found, Failure> {
    let (scope, id) = (ask.query_scope()?, ask.id()?);
    app.store.read(|registry| find(registry, &scope, id))
}

/// A schema's text, with what it refers to put in if that is asked for.
pub(super) async fn text(app: &App, resolved: bool, found: &Found) -> Result<Arc<str>, Failure> {
    match resolved {
        true => Ok(app.store.resolved(found.clone()).await?.into()),
        false => Ok(found.content.text.clone()),
    }
}

pub(super) async fn by_id(State(app): Shared, ask: Ask) -> Answer {
    let found = found(&app, &ask)?;
    let text = text(&app, ask.resolved(), &found).await?;
    let mut entity = Entity::new(&found.content, &text, ask.accepts_unknown());
    entity.max_id = ask.flag("fetchMaxId").then(|| app.store.read(|r| r.last_id(found.subject.context())));
    whole(&entity)
}

pub(super) async fn text_by_id(State(app): Shared, ask: Ask) -> Answer {
    let found = found(&app, &ask)?;
    bare(&text(&app, ask.resolved(), &found).await?)
}

/// Where an id is a version.
fn uses(app: &App, ask: &Ask) -> Result<Vec<(String, u32)>, Failure> {
    let (scope, id) = (ask.query_scope()?, ask.id()?);
    let shown = Shown::with_deleted(ask.flag("deleted"));
    app.store.read(|registry| {
        let found = find(registry, &scope, id)?;
        let uses = registry.uses(found.subject.context(), id, shown).unwrap_or_default();
        Ok(uses.into_iter().map(|(subject, version)| (subject.to_owned(), version)).collect())
    })
}

pub(super) async fn subjects_of_id(State(app): Shared, ask: Ask) -> Answer {
    let mut subjects: Vec<String> = uses(&app, &ask)?.into_iter().map(|(subject, _)| subject).collect();
    subjects.dedup();
    ok(&ask.page(subjects, None)?)
}

pub(super) async fn versions_of_id(State(app): Shared, ask: Ask) -> Answer {
    let uses = ask.page(uses(&app, &ask)?, None)?;
    let all: Vec<_> = uses.iter().map(|(subject, version)| json!({"subject": subject, "version": version})).collect();
    ok(&all)
}

fn of_guid(app: &App, ask: &Ask) -> Result<Vec<(String, SchemaId)>, Failure> {
    let guid = ask.guid()?;
    Ok(app.store.read(|r| r.by_guid(guid).into_iter().map(|(context, id)| (context.to_owned(), id)).collect()))
}

pub(super) async fn by_guid(State(app): Shared, ask: Ask) -> Answer {
    let Some((context, id)) = of_guid(&app, &ask)?.into_iter().next() else {
        return Err(Refusal::new(Code::SchemaNotFound, format!("Schema {} not found", ask.guid()?)).into());
    };
    let found = app.store.read(|registry| find(registry, &Subject::of(&context, ""), id))?;
    let text = text(&app, ask.resolved(), &found).await?;
    whole(&Entity::new(&found.content, &text, true))
}

pub(super) async fn ids_of_guid(State(app): Shared, ask: Ask) -> Answer {
    let all: Vec<_> = of_guid(&app, &ask)?.iter().map(|(context, id)| json!({"context": context, "id": id})).collect();
    ok(&all)
}

pub(super) async fn list(State(app): Shared, ask: Ask) -> Answer {
    let (prefix, shown) = (ask.prefix()?, Shown::with_deleted(ask.flag("deleted")));
    let all = app.store.read(|registry| registry.everything(&prefix, shown, ask.flag("latestOnly")));
    let all = ask.page(all, Some(MOST))?;
    let unknown = ask.accepts_unknown();
    ok(&all.iter().map(|found| Entity::of(found, &found.content.text, unknown)).collect::<Vec<_>>())
}
