//! Answers and failures as JSON.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};

use crate::content::{Content, Reference};
use crate::error::{Error, Refusal};
use crate::registry::Found;

/// An error in Confluent's form.
#[derive(Debug)]
pub(super) struct Failure {
    status: StatusCode,
    code: u32,
    message: String,
}

impl Failure {
    /// The status itself is the code.
    pub(super) fn plain(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, code: status.as_u16().into(), message: message.into() }
    }

    pub(super) fn not_found() -> Self {
        Self::plain(StatusCode::NOT_FOUND, "HTTP 404 Not Found")
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let code = refusal.code as u32;
        let status = if code > 999 { code / 100 } else { code };
        let status = StatusCode::from_u16(status as u16).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { status, code, message: refusal.message }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused(refusal) => refusal.into(),
            error => {
                tracing::error!(error = &error as &dyn std::error::Error, "request failed");
                let message = "Error in the backend data store".into();
                Self { status: StatusCode::INTERNAL_SERVER_ERROR, code: 50001, message }
            }
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = json!({"error_code": self.code, "message": self.message}).to_string();
        let mut answer = (self.status, body).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            let how = HeaderValue::from_static("Basic realm=\"registry\", charset=\"UTF-8\"");
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, how);
        }
        answer
    }
}

pub(super) type Answer = Result<Response, Failure>;

/// 200 with something as JSON.
pub(super) fn ok(value: &impl Serialize) -> Answer {
    Ok(serde_json::to_vec(value).expect("what we answer serialises").into_response())
}

/// 200 with what a schema is, which is little more than its text.
pub(super) fn whole(entity: &Entity<'_>) -> Answer {
    let mut body = Vec::with_capacity(entity.schema.len() + entity.schema.len() / 2 + 128);
    serde_json::to_writer(&mut body, entity).expect("what we answer serialises");
    Ok(body.into_response())
}

/// 200 with a text as it is.
pub(super) fn bare(text: &str) -> Answer {
    Ok(text.to_owned().into_response())
}

/// A schema, alone or as a version. What only newer clients know is left out
/// unless they say that they may be told.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Entity<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) subject: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) version: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    guid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schema_type: Option<&'static str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    references: &'a [Reference],
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule_set: Option<&'a Value>,
    schema: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    deleted: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_id: Option<u32>,
}

impl<'a> Entity<'a> {
    pub(super) fn new(content: &'a Content, text: &'a str, unknown: bool) -> Self {
        Self {
            subject: None,
            version: None,
            id: None,
            guid: unknown.then(|| content.guid().to_string()),
            schema_type: unknown.then(|| content.schema_type.name()),
            references: &content.references,
            metadata: content.metadata.as_deref(),
            rule_set: content.rule_set.as_deref(),
            schema: text,
            deleted: None,
            max_id: None,
        }
    }

    pub(super) fn of(found: &'a Found, text: &'a str, unknown: bool) -> Self {
        Self {
            subject: Some(found.subject.as_str()),
            version: Some(found.version.version),
            id: Some(found.version.id),
            deleted: found.version.deleted.then_some(true),
            ..Self::new(&found.content, text, unknown)
        }
    }
}
