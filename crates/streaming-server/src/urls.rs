//! The URLs that clients are sent to.

use crate::backend::{AttachRequest, ExecRequest, PortForwardRequest};
use crate::tokens::{Tokens, TooMany};
use std::sync::Arc;

/// A request that waits for its client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    Exec(ExecRequest),
    Attach(AttachRequest),
    PortForward(PortForwardRequest),
}

impl Request {
    /// The first part of its URL's path.
    pub(crate) fn path(&self) -> &'static str {
        match self {
            Self::Exec(_) => "exec",
            Self::Attach(_) => "attach",
            Self::PortForward(_) => "portforward",
        }
    }
}

/// Makes URLs, each good for one client and a minute. Cheap to clone.
#[derive(Debug, Clone)]
pub struct StreamUrls {
    /// `http://127.0.0.1:1234`
    pub(crate) base: String,
    pub(crate) tokens: Arc<Tokens<Request>>,
}

impl StreamUrls {
    /// Where a command is run.
    ///
    /// # Errors
    /// If too many requests wait for their clients.
    pub fn exec(&self, request: ExecRequest) -> Result<String, TooMany> {
        self.url(Request::Exec(request))
    }

    /// Where a container is attached to.
    ///
    /// # Errors
    /// If too many requests wait for their clients.
    pub fn attach(&self, request: AttachRequest) -> Result<String, TooMany> {
        self.url(Request::Attach(request))
    }

    /// Where ports are forwarded.
    ///
    /// # Errors
    /// If too many requests wait for their clients.
    pub fn port_forward(&self, request: PortForwardRequest) -> Result<String, TooMany> {
        self.url(Request::PortForward(request))
    }

    fn url(&self, request: Request) -> Result<String, TooMany> {
        let path = request.path();
        let token = self.tokens.put(request)?;
        Ok(format!("{}/{path}/{token}", self.base))
    }
}
