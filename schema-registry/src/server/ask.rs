//! What is asked for: path, query and body, each as lenient or strict as the
//! reference is.

use std::convert::Infallible;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::{HeaderMap, StatusCode};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use tokio::sync::OwnedSemaphorePermit;

use super::answer::Failure;
use super::guard::is_taken;
use super::{App, BODY_PATIENCE, PIECE};
use crate::error::{Code, Refusal};
use crate::registry::Which;
use crate::subject::{Prefix, Subject};

/// A request, taken apart.
pub(super) struct Ask {
    params: Result<RawPathParams, Failure>,
    query: Vec<(String, String)>,
    headers: HeaderMap,
    body: Body,
}

impl FromRequest<std::sync::Arc<App>> for Ask {
    type Rejection = Infallible;

    async fn from_request(request: Request, app: &std::sync::Arc<App>) -> Result<Self, Infallible> {
        let (mut parts, body) = request.into_parts();
        let params = RawPathParams::from_request_parts(&mut parts, app).await;
        let params = params.map_err(|_| Failure::plain(StatusCode::BAD_REQUEST, "the path is not UTF-8"));
        let query = parts.uri.query().unwrap_or_default();
        let query = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        Ok(Self { params, query, headers: parts.headers, body })
    }
}

impl Ask {
    /// A part of the path. A route that asks for one it does not have is a fault of ours.
    fn param(&self, name: &str) -> Result<Option<&str>, Failure> {
        match &self.params {
            Ok(params) => Ok(params.iter().find(|(key, _)| *key == name).map(|(_, value)| value)),
            Err(failure) => Err(Failure::plain(StatusCode::BAD_REQUEST, format!("{failure:?}"))),
        }
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// All values of a parameter.
    pub(super) fn texts(&self, name: &str) -> Vec<&str> {
        self.query.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect()
    }

    /// `true` in any letter case; anything else is false.
    pub(super) fn flag(&self, name: &str) -> bool {
        self.text(name).is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    /// `format=resolved`.
    pub(super) fn resolved(&self) -> bool {
        self.text("format") == Some("resolved")
    }

    pub(super) fn accepts_unknown(&self) -> bool {
        let value = self.headers.get("confluent-accept-unknown-properties");
        value.and_then(|value| value.to_str().ok()).is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    pub(super) fn context(&self) -> Result<Option<&str>, Failure> {
        self.param("context")
    }

    fn qualified(&self, name: &str) -> Result<String, Failure> {
        Ok(match self.context()? {
            Some(context) if !name.starts_with(":.") => Subject::of(context, name).as_str().to_owned(),
            _ => name.to_owned(),
        })
    }

    /// The path's subject, or the one that is meant by it.
    pub(super) fn subject(&self, app: &App) -> Result<Subject, Failure> {
        let name = self.param("subject")?.unwrap_or_default();
        let subject = Subject::parse(&self.qualified(name)?)?;
        Ok(app.store.read(|registry| registry.real(subject)))
    }

    /// Whose settings: of a subject, a context, or (None) of all.
    pub(super) fn scope(&self) -> Result<Option<Subject>, Failure> {
        let name = match (self.param("subject")?, self.context()?) {
            (None, None) => return Ok(None),
            (name, _) => self.qualified(name.unwrap_or_default())?,
        };
        let scope = Subject::scope(&name)?;
        if scope.as_str().is_empty() {
            // `:.:`, the default context: it has no settings but those of all.
            return Ok(None);
        }
        Ok(Some(scope))
    }

    /// The subject of the query, as far as it names a context.
    pub(super) fn query_scope(&self) -> Result<Subject, Failure> {
        Ok(Subject::scope(&self.qualified(self.text("subject").unwrap_or_default())?)?)
    }

    pub(super) fn prefix(&self) -> Result<Prefix, Failure> {
        Ok(match (self.text("subjectPrefix"), self.context()?) {
            (Some(prefix), None) => Prefix::new(prefix),
            (prefix, Some(_)) => Prefix::new(&self.qualified(prefix.unwrap_or_default())?),
            (None, None) => Prefix::new(":*:"),
        })
    }

    pub(super) fn id(&self) -> Result<u32, Failure> {
        let id = self.param("id")?.and_then(|id| id.parse::<i32>().ok()).ok_or_else(Failure::not_found)?;
        // No id is negative; what is not there is said elsewhere.
        Ok(u32::try_from(id).unwrap_or(0))
    }

    pub(super) fn guid(&self) -> Result<&str, Failure> {
        Ok(self.param("guid")?.unwrap_or_default())
    }

    pub(super) fn which(&self) -> Result<Which, Failure> {
        let text = self.param("version")?.unwrap_or_default();
        if text.eq_ignore_ascii_case("latest") {
            return Ok(Which::Latest);
        }
        match text.parse::<i32>() {
            Ok(-1) => Ok(Which::Latest),
            Ok(number) if number > 0 => Ok(Which::Number(number as u32)),
            _ => {
                let shown: String = text.chars().take(60).collect();
                let message = format!(
                    "The specified version '{shown}' is not a valid version id. Allowed values are between [1, 2^31-1] and the string \"latest\""
                );
                Err(Refusal::new(Code::InvalidVersion, message).into())
            }
        }
    }

    /// The asked-for part of a list, of which `most` are given at once.
    pub(super) fn page<T>(&self, mut all: Vec<T>, most: Option<usize>) -> Result<Vec<T>, Failure> {
        let number = |name: &str| match self.text(name) {
            None | Some("") => Ok(None),
            Some(text) => text.parse::<i32>().map(Some).map_err(|_| Failure::not_found()),
        };
        let offset = usize::try_from(number("offset")?.unwrap_or(0)).unwrap_or(0);
        let limit = number("limit")?.and_then(|limit| usize::try_from(limit).ok()).filter(|limit| *limit > 0);
        let limit = limit.filter(|limit| most.is_none_or(|most| *limit <= most)).or(most);
        all.drain(..offset.min(all.len()));
        all.truncate(limit.unwrap_or(usize::MAX));
        Ok(all)
    }

    /// The body, as an object of JSON. What it took of the room for bodies is
    /// free again once it is parsed: what is kept of it is counted elsewhere.
    pub(super) async fn json<T: DeserializeOwned>(self, app: &App) -> Result<T, Failure> {
        if !is_taken(&self.headers) {
            return Err(Failure::plain(StatusCode::UNSUPPORTED_MEDIA_TYPE, "HTTP 415 Unsupported Media Type"));
        }
        let (bytes, _room) = match tokio::time::timeout(BODY_PATIENCE, read(self.body, app)).await {
            Ok(read) => read?,
            Err(_) => return Err(Failure::plain(StatusCode::REQUEST_TIMEOUT, "the body came too slowly")),
        };
        let text = bytes.trim_ascii();
        if text.is_empty() || text == b"null" {
            return Err(Failure::plain(StatusCode::UNPROCESSABLE_ENTITY, "the body is empty"));
        }
        if text[0] != b'{' {
            return Err(Failure::plain(StatusCode::BAD_REQUEST, "the body is no object of JSON"));
        }
        serde_json::from_slice(text)
            .map_err(|error| Failure::plain(StatusCode::BAD_REQUEST, format!("the body cannot be read: {error}")))
    }
}

/// Reads a body piece by piece: whoever sends slowly holds only what was sent.
async fn read(body: Body, app: &App) -> Result<(Vec<u8>, Option<OwnedSemaphorePermit>), Failure> {
    let large = || {
        let message = format!("the body is larger than {} bytes", app.body);
        Failure::plain(StatusCode::PAYLOAD_TOO_LARGE, message)
    };
    let mut pieces = body.into_data_stream();
    let (mut bytes, mut room): (Vec<u8>, Option<OwnedSemaphorePermit>) = (Vec::new(), None);
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|_| Failure::plain(StatusCode::BAD_REQUEST, "the body ended before its end"))?;
        if bytes.len() + piece.len() > app.body {
            return Err(large());
        }
        let had = bytes.len().div_ceil(PIECE);
        bytes.extend_from_slice(&piece);
        let more = bytes.len().div_ceil(PIECE) - had;
        if more > 0 {
            let more = app.room.clone().acquire_many_owned(more as u32).await;
            let more = more.map_err(|_| Failure::plain(StatusCode::SERVICE_UNAVAILABLE, "closing"))?;
            match &mut room {
                Some(room) => room.merge(more),
                None => room = Some(more),
            }
        }
    }
    Ok((bytes, room))
}
