//! From an HTTP request to an answer: reads the body, has it routed, logs both, and shapes the response as the v1 contract has it.

use std::sync::Arc;
use std::time::Instant;

use axum::Extension;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::header::{CONNECTION, CONTENT_TYPE, HeaderName, SERVER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use log::{Level, debug, error, info, log_enabled};
use serde::Serialize;

use super::head;
use super::seats::Seat;
use crate::app::App;
use crate::error::Fault;
use crate::routes::{self, Call, Reply};

const DEPRECATION: HeaderName = HeaderName::from_static("deprecation");

/// The shape of every refusal by a handler.
#[derive(Serialize)]
struct FaultBody<'a> {
    fault_message: &'a str,
}

/// Answers one request.
pub(super) async fn answer(
    State(app): State<App>,
    Extension(seat): Extension<Arc<Seat>>,
    request: Request,
) -> Response {
    let _busy = seat.busy();
    let started = Instant::now();
    let (parts, body) = request.into_parts();
    if let Some(why) = parts.headers.get(head::REFUSED) {
        let why = why.to_str().unwrap_or("Invalid request.");
        error!("A request was refused before it was read: {why}");
        let mut response = respond(&app, StatusCode::BAD_REQUEST, Some(head::refusal_body(why).into_bytes()));
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        return response;
    }
    // The gate has compared the announced length with the limit already.
    let body = match to_bytes(body, app.payload_limit()).await {
        Ok(body) => body,
        Err(_) => {
            return respond(&app, StatusCode::BAD_REQUEST, Some(head::refusal_body("Invalid request.").into_bytes()));
        }
    };
    log_request(parts.method.as_str(), routes::word(&parts.method), parts.uri.path(), &body);
    let mut call = Call::new(&app, &body);
    let outcome = routes::serve(&mut call, &parts.method, parts.uri.path()).await;
    let mut response = conclude(&app, outcome);
    if call.is_deprecated() {
        response.headers_mut().insert(DEPRECATION, HeaderValue::from_static("true"));
    }
    debug!("Total previous API call duration: {} us.", started.elapsed().as_micros());
    response
}

fn log_request(method: &str, word: &str, path: &str, body: &[u8]) {
    // Metadata and CPU templates may be large or secret.
    let private = path.starts_with("/mmds") || path.starts_with("/cpu-config");
    if method == "GET" || body.is_empty() || (private && !log_enabled!(Level::Debug)) {
        info!("The API server received a {word} request on \"{path}\".");
    } else {
        info!("The API server received a {word} request on \"{path}\" with body \"{}\".", printable(body));
    }
}

/// A body on one log line.
fn printable(body: &[u8]) -> String {
    String::from_utf8_lossy(body).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn conclude(app: &App, outcome: Result<Reply, Fault>) -> Response {
    match outcome {
        Ok(reply) => {
            let status = if reply.is_some() { StatusCode::OK } else { StatusCode::NO_CONTENT };
            info!("The request was executed successfully. Status code: {}.", words(status));
            respond(app, status, reply)
        }
        Err(fault) => {
            error!("Received Error. Status code: {}. Message: {}", words(fault.status()), fault.message());
            let body = FaultBody { fault_message: fault.message() };
            // A struct with one string always serialises.
            respond(app, fault.status(), serde_json::to_vec(&body).ok())
        }
    }
}

fn words(status: StatusCode) -> String {
    format!("{} {}", status.as_u16(), status.canonical_reason().unwrap_or(""))
}

/// A response in the contract's order of headers. Without a body it has neither a type nor a length.
fn respond(app: &App, status: StatusCode, body: Option<Vec<u8>>) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(SERVER, HeaderValue::from_static(app.identity().server_header()));
    headers.insert(CONNECTION, HeaderValue::from_static("keep-alive"));
    if let Some(body) = body {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        *response.body_mut() = Body::from(body);
    }
    response
}
