//! The page for people: one document, one script, one style sheet, all of them in the binary.
//!
//! It asks the same routes as everybody else, and only those of the node that served it; its policy header keeps it
//! so, and keeps others from framing it.

use axum::http::header;
use axum::response::IntoResponse;

use super::input::NoQuery;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page for people
///
/// Nodes, convergence and recent jobs, kept up to date.
#[utoipa::path(get, path = "/", tag = "health",
    responses((status = 200, description = "HTML", body = String, content_type = "text/html")))]
pub(super) async fn page(_: NoQuery) -> impl IntoResponse {
    served("text/html; charset=utf-8", include_str!("page/index.html"))
}

pub(super) async fn script(_: NoQuery) -> impl IntoResponse {
    served("text/javascript; charset=utf-8", include_str!("page/page.js"))
}

pub(super) async fn style(_: NoQuery) -> impl IntoResponse {
    served("text/css; charset=utf-8", include_str!("page/page.css"))
}

fn served(content_type: &'static str, text: &'static str) -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text)
}
