//! Who may ask at all.
//!
//! A node listens on a port of the machine of somebody who also uses a browser, and submitting a job is running a
//! command. So a page from elsewhere must get nowhere. It cannot set `Host` or `Origin`: the first must name this
//! machine the way a local client does (an address, `localhost`, a configured name), or else the page's own name
//! was made to point here ("DNS rebinding"); the second, where there is one, must be the host that is asked. And
//! a body must be declared as JSON, which no plain form can do.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::App;
use super::errors::ApiError;
use super::input;

/// Lets a request pass, or refuses it before anything else is done about it.
pub(super) async fn admit(State(app): State<App>, request: Request, next: Next) -> Response {
    match check(&app.config().allowed_hosts, &request) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

/// Bounds the short requests.
pub(super) async fn take_slot(State(app): State<App>, request: Request, next: Next) -> Response {
    match app.short_slot() {
        Ok(_slot) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

fn check(allowed_hosts: &[String], request: &Request) -> Result<(), ApiError> {
    let headers = request.headers();
    let host = only(headers, header::HOST.as_str())?;
    let asked = match (request.uri().authority(), host) {
        (Some(authority), _) => authority.as_str().to_owned(),
        (None, Some(host)) => host,
        (None, None) => return Err(ApiError::malformed("there is no Host header").with_field("Host")),
    };
    if !is_allowed(&asked, allowed_hosts) {
        return Err(ApiError::forbidden(format!("this node does not answer to the name `{asked}`"))
            .with_hint("use its address or localhost, or allow the name in the node's settings")
            .with_field("Host"));
    }
    if let Some(origin) = only(headers, header::ORIGIN.as_str())? {
        let from = origin.split_once("://").map(|(_, authority)| authority);
        if !from.is_some_and(|from| from.eq_ignore_ascii_case(&asked)) {
            return Err(ApiError::forbidden(format!("pages of `{origin}` must not ask this node"))
                .with_hint("only the node's own page may, or a client that is no browser")
                .with_field("Origin"));
        }
    }
    if request.method() == Method::POST {
        input::format_of(headers)?;
    }
    Ok(())
}

/// The value of a header that must not come twice.
fn only(headers: &HeaderMap, name: &str) -> Result<Option<String>, ApiError> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => match value.to_str() {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(_) => Err(ApiError::malformed(format!("the header {name} is not readable")).with_field(name)),
        },
        (Some(_), Some(_)) => Err(ApiError::malformed(format!("the header {name} is given twice")).with_field(name)),
    }
}

/// Whether `authority` (a host, perhaps with a port) is an address, `localhost` or one of `names`.
fn is_allowed(authority: &str, names: &[String]) -> bool {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, "")) => (address, None),
            Some((address, port)) => (address, Some(port.strip_prefix(':').unwrap_or("?"))),
            None => return false,
        },
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let port_is_one = port.is_none_or(|port| port.is_empty() || port.parse::<u16>().is_ok());
    let host = host.strip_suffix('.').unwrap_or(host);
    let known = host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok()
        || names.iter().any(|name| name.eq_ignore_ascii_case(host));
    port_is_one && known
}

#[cfg(test)]
mod tests {
    use super::is_allowed;

    #[test]
    fn only_names_that_nobody_else_can_claim_are_allowed() {
        let names = ["flock.example".to_owned()];
        for good in ["127.0.0.1:7000", "[::1]:7000", "[::1]", "localhost", "LOCALHOST.:80", "Flock.Example:443"] {
            assert!(is_allowed(good, &names), "{good}");
        }
        for bad in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "[::1", "", "a@localhost"] {
            assert!(!is_allowed(bad, &names), "{bad}");
        }
    }
}
