//! What a client's request asks to be upgraded to, and the protocol that is spoken
//! then: of those it offers, in its order, the first that is known here.

use crate::websocket::Codec;
use hyper::header::{CONNECTION, HeaderMap, HeaderName, SEC_WEBSOCKET_KEY, UPGRADE};
use hyper::header::{SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// The name of SPDY/3.1 in the header Upgrade.
pub(crate) const SPDY: &str = "SPDY/3.1";
/// Where a SPDY client offers protocols and the server names its choice.
pub(crate) const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// Where the server names all it knows, if none of those offered is among them.
pub(crate) const ACCEPTED: HeaderName =
    HeaderName::from_static("x-accepted-stream-protocol-versions");

/// Why there is no upgrade.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum NegotiateError {
    #[error("unable to upgrade: missing upgrade headers in request")]
    NoUpgrade,
    #[error("unable to upgrade: the WebSocket handshake has no key or another version than 13")]
    Handshake,
    #[error(
        "unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server accepts {known:?}"
    )]
    Protocol {
        offered: Vec<String>,
        known: Vec<&'static str>,
    },
}

/// How the streams of a connection are carried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Transport {
    Spdy,
    WebSocket {
        /// The answer to the client's key.
        accept: String,
    },
}

/// An upgrade that can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Upgrade<P> {
    pub(crate) transport: Transport,
    /// The choice, as it is named to the client; `None`: it offered nothing.
    pub(crate) name: Option<&'static str>,
    pub(crate) protocol: P,
}

/// The protocol of exec and attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CommandProtocol {
    /// 3 and later have a resize stream, 4 and later a status object, 5 and later
    /// can end a WebSocket channel.
    pub(crate) version: u8,
    pub(crate) base64: bool,
}

impl CommandProtocol {
    const fn new(version: u8) -> Self {
        let base64 = false;
        Self { version, base64 }
    }

    const fn base64(version: u8) -> Self {
        let base64 = true;
        Self { version, base64 }
    }

    /// How WebSocket messages carry it.
    pub(crate) fn codec(self) -> Codec {
        Codec {
            base64: self.base64,
            close: self.version >= 5,
        }
    }
}

/// The protocol of port-forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ForwardProtocol {
    /// Pairs of SPDY streams, as many as the client opens.
    Pairs,
    /// Two WebSocket channels a port.
    Channels(Codec),
}

type Known<P> = [(&'static str, P)];

const SPDY_COMMAND: &Known<CommandProtocol> = &[
    ("v5.channel.k8s.io", CommandProtocol::new(5)),
    ("v4.channel.k8s.io", CommandProtocol::new(4)),
    ("v3.channel.k8s.io", CommandProtocol::new(3)),
    ("v2.channel.k8s.io", CommandProtocol::new(2)),
    ("channel.k8s.io", CommandProtocol::new(1)),
];

const WEBSOCKET_COMMAND: &Known<CommandProtocol> = &[
    ("v5.channel.k8s.io", CommandProtocol::new(5)),
    ("v5.base64.channel.k8s.io", CommandProtocol::base64(5)),
    ("v4.channel.k8s.io", CommandProtocol::new(4)),
    ("v4.base64.channel.k8s.io", CommandProtocol::base64(4)),
    ("channel.k8s.io", CommandProtocol::new(1)),
    ("base64.channel.k8s.io", CommandProtocol::base64(1)),
];

const SPDY_FORWARD: &Known<ForwardProtocol> = &[("portforward.k8s.io", ForwardProtocol::Pairs)];

const BINARY: ForwardProtocol = ForwardProtocol::Channels(Codec {
    base64: false,
    close: false,
});
const BASE64: ForwardProtocol = ForwardProtocol::Channels(Codec {
    base64: true,
    close: false,
});
const WEBSOCKET_FORWARD: &Known<ForwardProtocol> = &[
    ("SPDY/3.1+portforward.k8s.io", ForwardProtocol::Pairs),
    ("v4.channel.k8s.io", BINARY),
    ("v4.base64.channel.k8s.io", BASE64),
];

/// The upgrade of an exec or attach.
pub(crate) fn command(headers: &HeaderMap) -> Result<Upgrade<CommandProtocol>, NegotiateError> {
    let oldest = CommandProtocol::new(1);
    negotiate(headers, (SPDY_COMMAND, oldest), (WEBSOCKET_COMMAND, oldest))
}

/// The upgrade of a port-forward.
pub(crate) fn forward(headers: &HeaderMap) -> Result<Upgrade<ForwardProtocol>, NegotiateError> {
    negotiate(
        headers,
        (SPDY_FORWARD, ForwardProtocol::Pairs),
        (WEBSOCKET_FORWARD, BINARY),
    )
}

/// Each transport with what is known and what is meant by offering nothing.
fn negotiate<P: Copy>(
    headers: &HeaderMap,
    spdy: (&Known<P>, P),
    websocket: (&Known<P>, P),
) -> Result<Upgrade<P>, NegotiateError> {
    let transport = transport(headers)?;
    let (offers, (known, default)) = match transport {
        Transport::Spdy => (STREAM_PROTOCOL, spdy),
        Transport::WebSocket { .. } => (SEC_WEBSOCKET_PROTOCOL, websocket),
    };
    let offered: Vec<_> = words(headers, &offers).collect();
    if offered.is_empty() {
        return Ok(Upgrade {
            transport,
            name: None,
            protocol: default,
        });
    }
    let fits = |offer: &&str| known.iter().find(|(name, _)| name == offer);
    let Some(&(name, protocol)) = offered.iter().find_map(fits) else {
        return Err(NegotiateError::Protocol {
            offered: offered.into_iter().map(str::to_owned).collect(),
            known: known.iter().map(|&(name, _)| name).collect(),
        });
    };
    Ok(Upgrade {
        transport,
        name: Some(name),
        protocol,
    })
}

fn transport(headers: &HeaderMap) -> Result<Transport, NegotiateError> {
    let names = |name: &HeaderName, wanted: &str| {
        words(headers, name).any(|word| word.eq_ignore_ascii_case(wanted))
    };
    if !names(&CONNECTION, "upgrade") {
        return Err(NegotiateError::NoUpgrade);
    }
    if names(&UPGRADE, SPDY) {
        return Ok(Transport::Spdy);
    }
    if !names(&UPGRADE, "websocket") {
        return Err(NegotiateError::NoUpgrade);
    }
    let key = headers.get(SEC_WEBSOCKET_KEY);
    match key {
        Some(key) if names(&SEC_WEBSOCKET_VERSION, "13") => Ok(Transport::WebSocket {
            accept: derive_accept_key(key.as_bytes()),
        }),
        _ => Err(NegotiateError::Handshake),
    }
}

/// The words of all headers of that name, which are lists with commas.
fn words<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter();
    let texts = values.filter_map(|value| value.to_str().ok());
    texts
        .flat_map(|text| text.split(','))
        .map(str::trim)
        .filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn first_offer_that_is_known_is_taken() {
        let headers = headers(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "spdy/3.1"),
            ("x-stream-protocol-version", "v9.channel.k8s.io"),
            (
                "x-stream-protocol-version",
                "v3.channel.k8s.io, v4.channel.k8s.io",
            ),
        ]);
        let upgrade = command(&headers).unwrap();
        assert_eq!(upgrade.transport, Transport::Spdy);
        assert_eq!(upgrade.name, Some("v3.channel.k8s.io"));
        assert_eq!(upgrade.protocol, CommandProtocol::new(3));
        let error = forward(&headers).unwrap_err();
        assert!(matches!(error, NegotiateError::Protocol { .. }), "{error}");
    }

    #[test]
    fn client_that_offers_nothing_speaks_the_oldest() {
        let headers = headers(&[("connection", "upgrade"), ("upgrade", "SPDY/3.1")]);
        let upgrade = command(&headers).unwrap();
        assert_eq!((upgrade.name, upgrade.protocol.version), (None, 1));
        assert_eq!(forward(&headers).unwrap().protocol, ForwardProtocol::Pairs);
    }

    #[test]
    fn websocket_key_is_answered() {
        // The example of RFC 6455, 1.3.
        let with = |version: &str| {
            headers(&[
                ("connection", "Upgrade"),
                ("upgrade", "websocket"),
                ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
                ("sec-websocket-version", version),
                ("sec-websocket-protocol", "SPDY/3.1+portforward.k8s.io"),
            ])
        };
        let upgrade = forward(&with("13")).unwrap();
        let accept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".to_owned();
        assert_eq!(upgrade.transport, Transport::WebSocket { accept });
        assert_eq!(upgrade.protocol, ForwardProtocol::Pairs);
        assert_eq!(forward(&with("12")), Err(NegotiateError::Handshake));
    }

    #[test]
    fn request_without_an_upgrade_is_refused() {
        for pairs in [
            &[][..],
            &[("upgrade", "SPDY/3.1")],
            &[("connection", "upgrade")],
            &[("connection", "upgrade"), ("upgrade", "h2c")],
        ] {
            let error = command(&headers(pairs)).unwrap_err();
            assert_eq!(error, NegotiateError::NoUpgrade);
        }
    }
}
