//! The axum service: from an HTTP request to an answer of the v1 contract, logged on both ends.

use std::time::Instant;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, SERVER};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use hyper::ext::ReasonPhrase;
use log::{debug, error, info, log_enabled};

use crate::app::App;
use crate::error::Fault;
use crate::metrics;
use crate::routes;
use crate::server::REFUSED;

const SERVER_NAME: &str = "Firecracker API";
const DEPRECATION: HeaderName = HeaderName::from_static("deprecation");

/// Everything the API answers. Routing goes by path pieces and not by axum's patterns, so there is one entry.
pub(crate) fn router(app: App) -> Router {
    Router::new().fallback(answer).with_state(app)
}

async fn answer(State(app): State<App>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let closes = wants_close(&head.headers);
    if let Some(reason) = head.headers.get(REFUSED) {
        return refusal(reason.to_str().unwrap_or("Invalid request."), closes);
    }
    let body = match to_bytes(body, app.payload_limit()).await {
        Ok(body) => body,
        // A chunked body over the limit, chunks that make no sense, or a body that did not arrive in time.
        Err(_) => return refusal("Invalid request. Its body is too large or incomplete.", true),
    };
    let path = head.uri.path_and_query().map_or("/", |p| p.as_str());
    let started = Instant::now();
    log_request(head.method.as_str(), routes::word(&head.method), path, &body);
    let served = routes::serve(&app, &head.method, path, &body).await;
    metrics::count_request(&head.method, path, served.outcome.is_ok());
    if served.deprecated {
        metrics::note_deprecated();
    }
    let (status, json) = match served.outcome {
        Ok(Some(json)) => (StatusCode::OK, Some(json)),
        Ok(None) => (StatusCode::NO_CONTENT, None),
        Err(fault) => {
            error!("Received Error. Status code: {}. Message: {}", fault.status(), fault.message());
            (fault.status(), Some(fault_body(&fault)))
        }
    };
    if status.is_success() {
        info!("The request was executed successfully. Status code: {status}.");
    }
    debug!("Total previous API call duration: {} us.", started.elapsed().as_micros());
    response(status, json, served.deprecated, closes)
}

fn wants_close(headers: &HeaderMap) -> bool {
    headers.get(CONNECTION).is_some_and(|value| value == "close")
}

fn fault_body(fault: &Fault) -> Vec<u8> {
    serde_json::json!({ "fault_message": fault.message() }).to_string().into_bytes()
}

/// The contract's answer to what could not be read as a request. The line end inside the string is raw, as clients expect.
fn refusal(reason: &str, closes: bool) -> Response {
    let body = format!("{{ \"error\": \"{reason}\nAll previous unanswered requests will be dropped.\" }}");
    error!("Received Error. Status code: 400 Bad Request. Message: {reason}");
    response(StatusCode::BAD_REQUEST, Some(body.into_bytes()), false, closes)
}

/// Header order, and no reason phrase, as clients that compare whole answers expect.
fn response(status: StatusCode, json: Option<Vec<u8>>, deprecated: bool, closes: bool) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response.extensions_mut().insert(ReasonPhrase::from_static(b""));
    let headers = response.headers_mut();
    headers.insert(SERVER, HeaderValue::from_static(SERVER_NAME));
    headers.insert(CONNECTION, HeaderValue::from_static(if closes { "close" } else { "keep-alive" }));
    if deprecated {
        headers.insert(DEPRECATION, HeaderValue::from_static("true"));
    }
    if let Some(json) = json {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(json.len()));
        *response.body_mut() = Body::from(json);
    }
    response
}

fn log_request(method: &str, word: &str, path: &str, body: &Bytes) {
    if !log_enabled!(log::Level::Info) {
        return;
    }
    // These two carry what an operator may not want in a log.
    let private = ["/mmds", "/cpu-config"].iter().any(|p| path.trim_end_matches('/') == *p);
    if body.is_empty() || method == "GET" || (private && !log_enabled!(log::Level::Debug)) {
        info!("The API server received a {word} request on {path:?}.");
    } else {
        info!("The API server received a {word} request on {path:?} with body {:?}.", String::from_utf8_lossy(body));
    }
}

#[cfg(test)]
mod tests;
