//! Who answers requests.

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use tower_service::Service;

/// Answers requests, many at once.
pub trait Answer: Clone + Send + Sync + 'static {
    /// The answer, whatever is asked.
    fn answer(&self, request: Request) -> impl Future<Output = Response> + Send;
}

impl Answer for Router {
    async fn answer(&self, request: Request) -> Response {
        match self.clone().call(request).await {
            Ok(answer) => answer,
            Err(never) => match never {},
        }
    }
}
