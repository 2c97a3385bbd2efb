//! UpdateRuntimeConfig: the node's range of pod addresses.

use crate::error::CriError;
use crate::service::RuntimeServer;
use cri_api::v1::{UpdateRuntimeConfigRequest, UpdateRuntimeConfigResponse};
use std::net::IpAddr;

/// UpdateRuntimeConfig. The range is checked; what gives addresses to pods is
/// configured by itself.
pub(crate) async fn update_runtime_config(
    _server: &RuntimeServer,
    request: UpdateRuntimeConfigRequest,
) -> Result<UpdateRuntimeConfigResponse, CriError> {
    let network = request.runtime_config.and_then(|c| c.network_config);
    let ranges = network.map(|network| network.pod_cidr).unwrap_or_default();
    for range in ranges.split(',').filter(|range| !range.is_empty()) {
        check_range(range)?;
    }
    if !ranges.is_empty() {
        tracing::info!(pod_cidr = ranges, "the kubelet told the pods' addresses");
    }
    Ok(UpdateRuntimeConfigResponse {})
}

fn check_range(range: &str) -> Result<(), CriError> {
    let valid = range.split_once('/').is_some_and(|(address, bits)| {
        let most = match address.parse() {
            Ok(IpAddr::V4(_)) => 32,
            Ok(IpAddr::V6(_)) => 128,
            Err(_) => return false,
        };
        bits.parse::<u8>().is_ok_and(|bits| bits <= most)
    });
    if valid {
        return Ok(());
    }
    Err(CriError::invalid(
        "runtime_config.network_config.pod_cidr",
        format!("{range:?} is no range of addresses such as 10.0.0.0/24"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ranges_of_addresses_are_taken() {
        for range in ["10.0.0.0/24", "fd00::/64", "0.0.0.0/0"] {
            assert!(check_range(range).is_ok(), "{range}");
        }
        for range in ["10.0.0.0", "10.0.0.0/33", "fd00::/129", "x/1", "/"] {
            assert!(check_range(range).is_err(), "{range}");
        }
    }
}
