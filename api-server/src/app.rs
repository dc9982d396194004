//! What every request handler has at hand.

use std::sync::Arc;

use tokio::sync::oneshot;
use vmm::requests::{Permit, Submit};
use vmm::{Ask, Error, Handle};

use crate::confinement::ApiFences;
use crate::error::Fault;
use crate::identity::Identity;

/// Shared by all requests; cheap to clone.
#[derive(Clone)]
pub(crate) struct App {
    handle: Handle,
    identity: Identity,
    payload_limit: usize,
    fences: Arc<ApiFences>,
}

impl App {
    /// `payload_limit` is the largest body in bytes.
    pub(crate) fn new(handle: Handle, identity: Identity, payload_limit: usize, fences: ApiFences) -> Self {
        Self { handle, identity, payload_limit, fences: Arc::new(fences) }
    }

    /// Under which name we run.
    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    /// The fences of the thread that runs this.
    pub(crate) fn fences(&self) -> &ApiFences {
        &self.fences
    }

    /// Makes the calling thread, which serves the API, as narrow as it can be now, however the machine came about.
    pub(crate) fn narrow(&self) {
        if self.handle.has_machine() {
            self.fences.narrow();
        }
    }

    /// The largest body in bytes.
    pub(crate) fn payload_limit(&self) -> usize {
        self.payload_limit
    }

    /// Asks the VMM thread and waits without blocking this one.
    pub(crate) async fn ask<R: Submit>(&self, request: R) -> Result<R::Reply, Fault> {
        let (sender, receiver) = oneshot::channel();
        self.handle.submit(request, move |reply| {
            // The client may have gone away meanwhile; the request has been carried out all the same.
            let _ = sender.send(reply);
        });
        match receiver.await {
            Ok(reply) => Ok(reply?),
            // Dropped without an answer: the VMM thread is gone.
            Err(_) => Err(Error::gone().into()),
        }
    }

    /// Whether `ask` is allowed now. For requests that are answered here, without the VMM's help.
    pub(crate) async fn permit(&self, ask: Ask) -> Result<(), Fault> {
        self.ask(Permit(ask)).await
    }
}
