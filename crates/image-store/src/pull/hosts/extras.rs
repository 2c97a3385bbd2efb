//! Headers sent to a host, and how long it may take to accept a connection.

use std::{collections::BTreeMap, path::Path, time::Duration};

use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

use super::HostsError;

/// What each request has by itself.
const OWN: [HeaderName; 5] = [
    header::ACCEPT,
    header::CONTENT_LENGTH,
    header::HOST,
    header::RANGE,
    header::TRANSFER_ENCODING,
];

#[derive(Deserialize)]
#[serde(untagged, expecting = "header: expected a text or a list of texts")]
enum Texts {
    One(String),
    Many(Vec<String>),
}

/// The value of `header`.
#[derive(Deserialize, Default)]
#[serde(transparent)]
pub(super) struct HeaderValues(BTreeMap<String, Texts>);

impl HeaderValues {
    pub(super) fn parse(self, path: &Path) -> Result<HeaderMap, HostsError> {
        let mut headers = HeaderMap::new();
        for (key, texts) in self.0 {
            let bad = |message: &str| HostsError::Value {
                path: path.to_owned(),
                key: format!("header.{key:?}"),
                message: message.to_owned(),
            };
            let name = HeaderName::try_from(&key).map_err(|_| bad("is no header's name"))?;
            if OWN.contains(&name) {
                return Err(bad("cannot be set: each request has its own"));
            }
            let texts = match texts {
                Texts::One(text) => vec![text],
                Texts::Many(texts) => texts,
            };
            for text in texts {
                let value = HeaderValue::try_from(text);
                let mut value = value.map_err(|_| bad("the value has a control character"))?;
                value.set_sensitive(true);
                headers.append(name.clone(), value);
            }
        }
        Ok(headers)
    }
}

/// The value of `dial_timeout`.
pub(super) fn dial_timeout(
    text: Option<&str>,
    path: &Path,
) -> Result<Option<Duration>, HostsError> {
    let Some(text) = text else {
        return Ok(None);
    };
    let time = humantime::parse_duration(text).ok();
    let time = time.filter(|time| !time.is_zero());
    time.map(Some).ok_or_else(|| HostsError::Value {
        path: path.to_owned(),
        key: "dial_timeout".to_owned(),
        message: format!("{text:?} is no time such as \"5s\""),
    })
}
