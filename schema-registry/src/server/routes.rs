//! The table of routes.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::json;

use super::answer::{Answer, Failure, ok};
use super::{App, compatibility, schemas, settings, subjects};

pub(super) fn router(app: Arc<App>) -> Router {
    // Everything may also be asked of a context.
    let in_context = Router::new()
        .route("/schemas/types", get(schemas::types))
        .route("/schemas/ids/{id}", get(schemas::by_id))
        .route("/schemas/ids/{id}/schema", get(schemas::text_by_id))
        .route("/schemas/ids/{id}/subjects", get(schemas::subjects_of_id))
        .route("/schemas/ids/{id}/versions", get(schemas::versions_of_id))
        .route("/schemas/guids/{guid}", get(schemas::by_guid))
        .route("/schemas/guids/{guid}/ids", get(schemas::ids_of_guid))
        .route("/schemas", get(schemas::list))
        .route("/subjects", get(subjects::list))
        .route("/subjects/{subject}", post(subjects::lookup).delete(subjects::delete))
        .route("/subjects/{subject}/metadata", get(subjects::by_metadata))
        .route("/subjects/{subject}/versions", get(subjects::versions).post(subjects::register))
        .route("/subjects/{subject}/versions/{version}", get(subjects::version).delete(subjects::delete_version))
        .route("/subjects/{subject}/versions/{version}/schema", get(subjects::version_text))
        .route("/subjects/{subject}/versions/{version}/referencedby", get(subjects::referenced_by))
        .route("/subjects/{subject}/versions/{version}/tags", post(subjects::tag))
        .route("/compatibility/subjects/{subject}/versions", post(compatibility::with_all))
        .route("/compatibility/subjects/{subject}/versions/{version}", post(compatibility::with_one))
        .route("/config", get(settings::config).put(settings::set_config).delete(settings::remove_config))
        .route("/config/{subject}", get(settings::config).put(settings::set_config).delete(settings::remove_config))
        .route("/mode", get(settings::mode).put(settings::set_mode).delete(settings::remove_mode))
        .route("/mode/{subject}", get(settings::mode).put(settings::set_mode).delete(settings::remove_mode));
    Router::new()
        .merge(in_context.clone())
        .nest("/contexts/{context}", in_context)
        .route("/", get(root).post(root))
        .route("/contexts", get(settings::contexts))
        .route("/contexts/{context}", axum::routing::delete(settings::delete_context))
        .route("/v1/metadata/id", get(cluster))
        .route("/v1/metadata/version", get(version))
        .route("/v1/metadata/deployment", get(deployment))
        .fallback(async || Failure::not_found())
        .method_not_allowed_fallback(wrong_method)
        .with_state(app)
}

async fn root() -> Answer {
    ok(&json!({}))
}

async fn cluster(State(_): State<Arc<App>>) -> Answer {
    ok(&json!({"scope": {"path": [], "clusters": {"schema-registry-cluster": "highwater"}}}))
}

/// Attributes of a managed registry, of which there are none here.
async fn deployment() -> Answer {
    ok(&json!({"attributes": []}))
}

async fn version() -> Answer {
    ok(&json!({"version": env!("CARGO_PKG_VERSION"), "commitId": ""}))
}

/// The router adds which methods there are.
async fn wrong_method(method: Method) -> Response {
    if method == Method::OPTIONS {
        return StatusCode::OK.into_response();
    }
    Failure::plain(StatusCode::METHOD_NOT_ALLOWED, "HTTP 405 Method Not Allowed").into_response()
}
