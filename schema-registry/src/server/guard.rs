//! What holds for every request: the Host, the media types, the role; and
//! that every answer, whoever made it, is JSON of the kind asked for.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use listener::{Answer, Refused, Role};

use super::answer::Failure;
use super::{App, routes};

pub(super) const V1: &str = "application/vnd.schemaregistry.v1+json";
const KNOWN: [&str; 3] = [V1, "application/vnd.schemaregistry+json", "application/json"];
const ANY: [&str; 2] = ["*/*", "application/*"];

/// The routes behind the guard. Not a layer of the router's: it would be one
/// around each route, made anew for each request.
#[derive(Clone)]
pub(super) struct Guarded {
    app: Arc<App>,
    routes: Router,
}

impl Guarded {
    pub(super) fn new(app: Arc<App>) -> Self {
        Self { routes: routes::router(app.clone()), app }
    }
}

impl Answer for Guarded {
    async fn answer(&self, request: Request) -> Response {
        let kind = accepted(request.headers());
        let role = self.app.gate.admit(&request).await;
        let mut answer = match allowed(role, &request, kind) {
            Ok(()) => self.routes.answer(request).await,
            Err(failure) => failure.into_response(),
        };
        if answer.status() != StatusCode::NO_CONTENT {
            answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind.unwrap_or(V1)));
        }
        answer
    }
}

fn allowed(role: Result<Role, Refused>, request: &Request, kind: Option<&str>) -> Result<(), Failure> {
    if let Err(refused @ Refused::Host) = role {
        return Err(Failure::plain(StatusCode::FORBIDDEN, refused.message()));
    }
    if kind.is_none() {
        return Err(Failure::plain(StatusCode::NOT_ACCEPTABLE, "HTTP 406 Not Acceptable"));
    }
    let role = role.map_err(|refused| Failure::plain(StatusCode::UNAUTHORIZED, refused.message()))?;
    let needed = needed(request.method(), request.uri().path(), request.uri().query().unwrap_or_default());
    if role < needed {
        let what = format!("this needs the role {needed:?}").to_lowercase();
        return Err(Failure::plain(StatusCode::FORBIDDEN, what));
    }
    Ok(())
}

/// What a request needs.
fn needed(method: &Method, path: &str, query: &str) -> Role {
    let path = match path.strip_prefix("/contexts/") {
        Some(inside) => inside.find('/').map_or("", |at| &inside[at..]),
        None => path,
    };
    let subjects = path.starts_with("/subjects");
    let for_good = query.split('&').any(|pair| {
        pair.split_once('=').is_some_and(|(key, value)| key == "permanent" && value.eq_ignore_ascii_case("true"))
    });
    match *method {
        Method::GET | Method::HEAD | Method::OPTIONS => Role::Read,
        Method::POST if subjects && path.split('/').nth(3) == Some("versions") => Role::Write,
        Method::POST => Role::Read,
        Method::DELETE if subjects && !for_good => Role::Write,
        _ => Role::Admin,
    }
}

/// The kind of JSON that is asked for; None if something else is.
fn accepted(headers: &HeaderMap) -> Option<&'static str> {
    let mut best: Option<(f32, &'static str)> = None;
    let mut asked = false;
    for value in headers.get_all(header::ACCEPT) {
        for part in value.to_str().unwrap_or_default().split(',') {
            let mut pieces = part.split(';').map(str::trim);
            let name = pieces.next().unwrap_or_default();
            if name.is_empty() {
                continue;
            }
            asked = true;
            let weight = pieces.find_map(|piece| piece.strip_prefix("q=")?.parse().ok()).unwrap_or(1.0);
            let is = |kind: &&str| kind.eq_ignore_ascii_case(name);
            let kind = KNOWN.into_iter().find(is).or_else(|| ANY.iter().find(|any| is(any)).map(|_| V1));
            if let Some(kind) = kind
                && weight > 0.0
                && best.is_none_or(|(so_far, _)| weight > so_far)
            {
                best = Some((weight, kind));
            }
        }
    }
    if asked { best.map(|(_, kind)| kind) } else { Some(V1) }
}

/// Whether a body of this kind is taken: JSON under its names, or no name at all.
pub(super) fn is_taken(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(header::CONTENT_TYPE) else { return true };
    let name = kind.to_str().unwrap_or("?").split(';').next().unwrap_or_default().trim();
    name.eq_ignore_ascii_case("application/octet-stream") || KNOWN.iter().any(|known| known.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_request_needs() {
        let check =
            |method: Method, path: &str, query: &str, role| assert_eq!(needed(&method, path, query), role, "{path}");
        check(Method::GET, "/subjects/a/versions", "", Role::Read);
        check(Method::POST, "/subjects/a", "", Role::Read);
        check(Method::POST, "/compatibility/subjects/a/versions/latest", "", Role::Read);
        check(Method::POST, "/subjects/a/versions", "", Role::Write);
        check(Method::POST, "/contexts/c/subjects/a/versions", "", Role::Write);
        check(Method::DELETE, "/subjects/a", "permanent=false", Role::Write);
        check(Method::DELETE, "/subjects/a", "x=1&permanent=True", Role::Admin);
        check(Method::PUT, "/config", "", Role::Admin);
        check(Method::DELETE, "/contexts/c", "", Role::Admin);
        check(Method::POST, "/subjects/versions", "", Role::Read);
    }

    #[test]
    fn accept_lists_are_honoured() {
        let check = |accept: &str, expected: Option<&str>| {
            let headers = HeaderMap::from_iter([(header::ACCEPT, accept.parse().unwrap())]);
            assert_eq!(accepted(&headers), expected, "{accept}");
        };
        check("*/*", Some(V1));
        check("application/json", Some("application/json"));
        check("text/html, application/json;q=0.5, application/vnd.schemaregistry+json;q=0.9", Some(KNOWN[1]));
        check(
            "application/vnd.schemaregistry.v1+json, application/vnd.schemaregistry+json, application/json",
            Some(V1),
        );
        check("text/html", None);
        check("text/html, */*; q=0.1", Some(V1));
        check("application/json;q=0", None);
        assert_eq!(accepted(&HeaderMap::new()), Some(V1));
    }
}
