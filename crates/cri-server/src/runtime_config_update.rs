//! UpdateRuntimeConfig: the node's ranges of pod addresses.

use crate::error::CriError;
use crate::service::RuntimeServer;
use cri_api::v1::{UpdateRuntimeConfigRequest, UpdateRuntimeConfigResponse};
use pod_network::IpRange;
use state_store::{StateError, StateStore, Table};
use std::sync::{Arc, Mutex, PoisonError};

/// Version of the record's layout, and its one key.
const VERSION: u32 = 1;
const KEY: &str = "pod-ranges";

/// UpdateRuntimeConfig. From then on new pods' addresses come from these ranges
/// where the CNI configuration leaves that to the runtime (capability `ipRanges`);
/// most do not, and then this says nothing.
pub(crate) async fn update_runtime_config(
    server: &RuntimeServer,
    request: UpdateRuntimeConfigRequest,
) -> Result<UpdateRuntimeConfigResponse, CriError> {
    let network = request.runtime_config.and_then(|c| c.network_config);
    let given = network.map(|network| network.pod_cidr).unwrap_or_default();
    let ranges = parse(&given)?;
    // A kubelet that knows none yet says so by an empty one.
    if !ranges.is_empty() {
        server.pod_ranges.set(ranges).await?;
        tracing::info!(pod_cidr = given, "the kubelet told the pods' addresses");
    }
    Ok(UpdateRuntimeConfigResponse {})
}

fn parse(pod_cidr: &str) -> Result<Vec<IpRange>, CriError> {
    let ranges = pod_cidr.split(',').filter(|range| !range.is_empty());
    ranges
        .map(|range| {
            range.parse().map_err(|_| {
                CriError::invalid(
                    "runtime_config.network_config.pod_cidr",
                    format!("{range:?} is no range of addresses such as 10.0.0.0/24"),
                )
            })
        })
        .collect()
}

/// The ranges that the kubelet told last. It tells them once: they are kept on disk
/// for the next daemon.
#[derive(Debug, Clone)]
pub(crate) struct PodRanges {
    table: Table<Vec<IpRange>>,
    current: Arc<Mutex<Vec<IpRange>>>,
}

impl PodRanges {
    pub(crate) fn new(state: &StateStore) -> Self {
        let table: Table<Vec<IpRange>> = state.table("cri-node", VERSION);
        let known = table.get(KEY).unwrap_or_else(|error| {
            tracing::error!(%error, "the ranges of pods' addresses are forgotten; restart the kubelet");
            None
        });
        Self {
            table,
            current: Arc::new(Mutex::new(known.unwrap_or_default())),
        }
    }

    /// As plugins are told them: an address of each.
    pub(crate) fn get(&self) -> Vec<Vec<IpRange>> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.iter().map(|range| vec![range.clone()]).collect()
    }

    async fn set(&self, ranges: Vec<IpRange>) -> Result<(), CriError> {
        let ranges_kept = self.clone();
        let write = move || -> Result<(), StateError> {
            let mut current = ranges_kept
                .current
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            ranges_kept.table.put(KEY, &ranges)?;
            *current = ranges;
            Ok(())
        };
        match tokio::task::spawn_blocking(write).await {
            Ok(written) => Ok(written?),
            Err(_) => Err(CriError::TaskDied("the record of ranges".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ranges_of_addresses_are_taken() {
        for range in [
            "10.0.0.0/24",
            "fd00::/64",
            "0.0.0.0/0",
            "10.0.0.0/24,fd00::/64",
        ] {
            assert!(parse(range).is_ok(), "{range}");
        }
        for range in [
            "10.0.0.0",
            "10.0.0.0/33",
            "fd00::/129",
            "x/1",
            "/",
            "10.0.0.0/24,x",
        ] {
            assert!(parse(range).is_err(), "{range}");
        }
    }

    #[tokio::test]
    async fn ranges_outlive_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        let told = parse("10.0.0.0/24,fd00::/64").unwrap();
        {
            let ranges = PodRanges::new(&StateStore::open(&path).unwrap());
            assert!(ranges.get().is_empty());
            ranges.set(told.clone()).await.unwrap();
        }
        let ranges = PodRanges::new(&StateStore::open(&path).unwrap());
        let expected: Vec<Vec<IpRange>> = told.into_iter().map(|range| vec![range]).collect();
        assert_eq!(ranges.get(), expected);
    }
}
