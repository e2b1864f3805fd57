//! `/config`, `/mode`, `/contexts`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::App;
use super::answer::{Answer, Failure, ok};
use super::ask::Ask;

type Shared = State<Arc<App>>;

pub(super) async fn config(State(app): Shared, ask: Ask) -> Answer {
    let scope = ask.scope()?;
    ok(&app.store.read(|registry| registry.config(scope.as_ref(), ask.flag("defaultToGlobal")))?)
}

pub(super) async fn set_config(State(app): Shared, ask: Ask) -> Answer {
    let scope = ask.scope()?;
    let request: Map<String, Value> = ask.json(&app).await?;
    match app.store.set_config(scope, request).await? {
        Ok(echo) => ok(&echo),
        Err(wrong) => Err(Failure::plain(StatusCode::BAD_REQUEST, wrong)),
    }
}

pub(super) async fn remove_config(State(app): Shared, ask: Ask) -> Answer {
    ok(&app.store.remove_config(ask.scope()?).await?)
}

pub(super) async fn mode(State(app): Shared, ask: Ask) -> Answer {
    let scope = ask.scope()?;
    ok(&json!({"mode": app.store.read(|registry| registry.mode_of(scope.as_ref(), ask.flag("defaultToGlobal")))?}))
}

#[derive(Deserialize)]
struct Mode {
    mode: Option<String>,
}

pub(super) async fn set_mode(State(app): Shared, ask: Ask) -> Answer {
    let (scope, force) = (ask.scope()?, ask.flag("force"));
    let Mode { mode } = ask.json(&app).await?;
    app.store.set_mode(scope, mode.clone(), force).await?;
    ok(&mode.map_or(json!({}), |mode| json!({"mode": mode})))
}

pub(super) async fn remove_mode(State(app): Shared, ask: Ask) -> Answer {
    let old = app.store.remove_mode(ask.scope()?, ask.flag("recursive")).await?;
    ok(&old.map_or(json!({}), |mode| json!({"mode": mode})))
}

pub(super) async fn contexts(State(app): Shared, ask: Ask) -> Answer {
    let prefix = ask.text("contextPrefix").unwrap_or_default();
    let all = app.store.read(|registry| {
        let all = registry.contexts();
        all.into_iter().filter(|context| context.starts_with(prefix)).map(str::to_owned).collect::<Vec<_>>()
    });
    ok(&ask.page(all, None)?)
}

pub(super) async fn delete_context(State(app): Shared, ask: Ask) -> Answer {
    let context = ask.context()?.unwrap_or_default().to_owned();
    app.store.delete_context(context).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
