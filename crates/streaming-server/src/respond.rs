//! Answers to the HTTP requests that begin a session.

use crate::negotiate::{ACCEPTED, NegotiateError, SPDY, STREAM_PROTOCOL, Transport, Upgrade};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{
    ALLOW, CONNECTION, CONTENT_TYPE, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL,
    UPGRADE,
};
use hyper::{Response, StatusCode};

pub(crate) type Answer = Response<Full<Bytes>>;

/// A text with that status.
pub(crate) fn text(status: StatusCode, text: impl Into<String>) -> Answer {
    let mut text: String = text.into();
    text.push('\n');
    let mut answer = Response::new(Full::new(text.into()));
    *answer.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, plain);
    answer
}

pub(crate) fn wrong_method() -> Answer {
    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "GET or POST only");
    let methods = HeaderValue::from_static("GET, POST");
    answer.headers_mut().insert(ALLOW, methods);
    answer
}

pub(crate) fn refused(error: &NegotiateError) -> Answer {
    let NegotiateError::Protocol { known, .. } = error else {
        return text(StatusCode::BAD_REQUEST, error.to_string());
    };
    let mut answer = text(StatusCode::FORBIDDEN, error.to_string());
    for name in known {
        let name = HeaderValue::from_static(name);
        answer.headers_mut().append(ACCEPTED, name);
    }
    answer
}

pub(crate) fn switching<P>(upgrade: &Upgrade<P>) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    let (transport, protocol) = match &upgrade.transport {
        Transport::Spdy => (SPDY, STREAM_PROTOCOL),
        Transport::WebSocket { accept } => {
            // Base64 is what a header may hold.
            if let Ok(accept) = HeaderValue::from_str(accept) {
                headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
            }
            ("websocket", SEC_WEBSOCKET_PROTOCOL)
        }
    };
    headers.insert(UPGRADE, HeaderValue::from_static(transport));
    if let Some(name) = upgrade.name {
        headers.insert(protocol, HeaderValue::from_static(name));
    }
    answer
}
