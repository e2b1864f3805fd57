//! `/compatibility`: whether a schema could be registered.

use std::sync::Arc;

use axum::extract::State;
use serde_json::json;

use super::App;
use super::answer::{Answer, ok};
use super::ask::Ask;
use crate::content::NewSchema;
use crate::error::{Code, Refusal};
use crate::registry::Which;

type Shared = State<Arc<App>>;

pub(super) async fn with_all(State(app): Shared, ask: Ask) -> Answer {
    compare(&app, ask, None).await
}

pub(super) async fn with_one(State(app): Shared, ask: Ask) -> Answer {
    let which = ask.which()?;
    compare(&app, ask, Some(which)).await
}

async fn compare(app: &App, ask: Ask, against: Option<Which>) -> Answer {
    let subject = ask.subject(app)?;
    let (normalize, verbose) = (ask.flag("normalize"), ask.flag("verbose"));
    let new: NewSchema = ask.json(app).await?;
    let verdict = app.store.compare(subject, against, new, normalize).await?;
    let is_compatible = verdict.messages.is_empty();
    if verbose {
        return ok(&json!({"is_compatible": is_compatible, "messages": verdict.messages}));
    }
    if verdict.invalid {
        let why = verdict.messages.into_iter().next().unwrap_or_default();
        return Err(Refusal::new(Code::InvalidSchema, why).into());
    }
    ok(&json!({"is_compatible": is_compatible}))
}
