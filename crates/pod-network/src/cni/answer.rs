//! Results and errors as plugins answer them.

use super::version::SpecVersion;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::net::IpAddr;

/// The part of a result that we use. What else it holds is kept in the JSON that
/// goes to the next plugin.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct AddResult {
    #[serde(default)]
    pub(crate) interfaces: Vec<ResultInterface>,
    #[serde(default)]
    pub(crate) ips: Vec<ResultIp>,
    #[serde(default)]
    pub(crate) routes: Vec<ResultRoute>,
    #[serde(default)]
    pub(crate) dns: Dns,
}

/// An interface that a plugin made.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ResultInterface {
    pub(crate) name: String,
    /// The namespace's path; empty for an interface of the host.
    #[serde(default)]
    pub(crate) sandbox: String,
}

/// An address that a plugin gave.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ResultIp {
    pub(crate) address: IpNet,
    pub(crate) gateway: Option<IpAddr>,
    /// Index into the interfaces.
    pub(crate) interface: Option<usize>,
}

/// A route that a plugin gave.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ResultRoute {
    pub(crate) dst: IpNet,
    pub(crate) gw: Option<IpAddr>,
    pub(crate) mtu: Option<u32>,
    pub(crate) priority: Option<u32>,
    pub(crate) table: Option<u32>,
}

/// Name resolution as the network wants it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Addresses of servers, best first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Domains for short names, best first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options for resolv.conf.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// An error in the words of the plugin.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ErrorAnswer {
    #[serde(default)]
    pub(crate) code: i64,
    #[serde(default)]
    pub(crate) msg: String,
    #[serde(default)]
    pub(crate) details: String,
}

/// Versions that a plugin says it speaks.
#[derive(Debug, Deserialize)]
pub(crate) struct VersionAnswer {
    #[serde(rename = "supportedVersions")]
    pub(crate) supported: Vec<String>,
}

/// Why a result is not one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResultError {
    /// Nothing at all.
    #[error("it answered nothing")]
    Empty,
    /// Not what a result looks like.
    #[error("its answer is no CNI result; it begins {start:?}")]
    Malformed {
        /// The beginning of the answer.
        start: String,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A version that cannot be brought to the one that was asked for.
    #[error("its result is of CNI version {0}, which is not supported")]
    Version(String),
    /// `ips[].interface` points past the interfaces.
    #[error("address {address} belongs to interface {index}, but there are {count}")]
    Interface {
        /// The address.
        address: IpNet,
        /// The index given.
        index: usize,
        /// How many interfaces there are.
        count: usize,
    },
}

fn malformed(bytes: &[u8]) -> impl FnOnce(serde_json::Error) -> ResultError {
    let start = String::from_utf8_lossy(bytes.get(..80).unwrap_or(bytes)).into_owned();
    move |source| ResultError::Malformed { start, source }
}

/// Reads the answer to ADD, and brings it to `version`: the next plugin is spoken
/// to in that version, whatever this one answered in.
pub(crate) fn read_result(bytes: &[u8], version: SpecVersion) -> Result<Value, ResultError> {
    if bytes.trim_ascii().is_empty() {
        return Err(ResultError::Empty);
    }
    let mut value: Value = serde_json::from_slice(bytes).map_err(malformed(bytes))?;
    // The fields must be well-formed before any plugin is given them again.
    let result = parse(&value).map_err(malformed(bytes))?;
    let given = value.get("cniVersion").and_then(Value::as_str);
    // A result says its version; plugins of shell leave it out.
    if let Some(given) = given
        && given != version.as_str()
    {
        if SpecVersion::parse(given).is_none() && given != "0.3.0" {
            return Err(ResultError::Version(given.to_owned()));
        }
        convert(&mut value, version);
    }
    if let Some(object) = value.as_object_mut() {
        object.insert("cniVersion".into(), version.as_str().into());
    }
    for ip in &result.ips {
        let count = result.interfaces.len();
        if let Some(index) = ip.interface
            && index >= count
        {
            let address = ip.address;
            return Err(ResultError::Interface {
                address,
                index,
                count,
            });
        }
    }
    Ok(value)
}

/// The part of a result that we use.
pub(crate) fn parse(value: &Value) -> Result<AddResult, serde_json::Error> {
    // `null` for a list is what Go writes for an empty one.
    let mut value = value.clone();
    if let Some(object) = value.as_object_mut() {
        object.retain(|_, v| !v.is_null());
    }
    AddResult::deserialize(value)
}

/// The versions differ in one field: up to 0.4.0 an address names its family.
fn convert(value: &mut Value, version: SpecVersion) {
    let ips = value.get_mut("ips").and_then(Value::as_array_mut);
    for ip in ips.into_iter().flatten() {
        let Some(ip) = ip.as_object_mut() else {
            continue;
        };
        if version >= SpecVersion::V1_0_0 {
            ip.remove("version");
        } else {
            let v6 = ip
                .get("address")
                .and_then(Value::as_str)
                .is_some_and(|a| a.contains(':'));
            ip.insert("version".into(), if v6 { "6" } else { "4" }.into());
        }
    }
}

#[cfg(test)]
mod tests;
