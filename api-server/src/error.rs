//! Refusals on their way to the client: the one place where a kind of error becomes an HTTP status.

use axum::http::StatusCode;
use vmm::Kind;

use crate::wire::{Later, later};

/// A refused request. Its message becomes `{"fault_message": …}`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    status: StatusCode,
    message: String,
}

impl Fault {
    /// A request that is wrong in itself.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message: message.into() }
    }

    /// A body that is not the JSON it should be.
    pub(crate) fn json(error: &serde_json::Error) -> Self {
        Self::bad_request(format!("An error occurred when deserializing the json body of a request: {error}."))
    }

    /// The HTTP status to answer with.
    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    /// What is wrong.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }
}

impl From<vmm::Error> for Fault {
    fn from(error: vmm::Error) -> Self {
        let status = match error.kind() {
            Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            // For all others the v1 contract knows one status: not for a wrong phase (409) nor for a failing host (500).
            Kind::Invalid | Kind::Phase | Kind::Unsupported | Kind::Host | Kind::Gone => StatusCode::BAD_REQUEST,
        };
        Self { status, message: error.to_string() }
    }
}

impl From<Later> for Fault {
    fn from(Later(what): Later) -> Self {
        Self::bad_request(later(what))
    }
}
