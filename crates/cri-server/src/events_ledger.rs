//! What subscribers were told, on disk: table `cri-events`, by the id of a sandbox
//! or container.

use crate::error::CriError;
use crate::events_missing::Phase;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cri_api::v1::PodSandboxStatus;
use prost::Message;
use serde::{Deserialize, Serialize};
use state_store::{StateError, StateStore, Table};
use std::collections::BTreeMap;

/// Version of the records' layout.
const VERSION: u32 = 1;

/// What was told of a sandbox or container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    /// Its sandbox; a sandbox's own id.
    pub(crate) sandbox_id: String,
    pub(crate) phase: Phase,
    /// A sandbox's status (protobuf, base64), for the event of its removal: then
    /// it cannot be asked any more.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    status: String,
}

impl Told {
    pub(crate) fn new(sandbox_id: &str, phase: Phase, status: Option<&PodSandboxStatus>) -> Self {
        let encode = |status: &PodSandboxStatus| STANDARD.encode(status.encode_to_vec());
        Self {
            sandbox_id: sandbox_id.to_owned(),
            phase,
            status: status.map(encode).unwrap_or_default(),
        }
    }

    /// The same, further.
    pub(crate) fn at(&self, phase: Phase) -> Self {
        Self {
            phase,
            ..self.clone()
        }
    }

    /// The sandbox's status at that time.
    pub(crate) fn status(&self) -> Option<PodSandboxStatus> {
        if self.status.is_empty() {
            return None;
        }
        let bytes = STANDARD.decode(&self.status).ok()?;
        PodSandboxStatus::decode(bytes.as_slice()).ok()
    }
}

/// The table. Its calls wait for the disk on threads for that.
#[derive(Debug, Clone)]
pub(crate) struct Ledger(Table<Told>);

impl Ledger {
    pub(crate) fn new(state: &StateStore) -> Self {
        Self(state.table("cri-events", VERSION))
    }

    /// All that was told.
    pub(crate) async fn all(&self) -> Result<BTreeMap<String, Told>, CriError> {
        let table = self.0.clone();
        blocking(move || table.list().map(|rows| rows.into_iter().collect())).await
    }

    /// Records what was told of a subject; `None`: that it is gone. Another
    /// subscriber may be further: nothing is taken back.
    pub(crate) async fn tell(&self, id: &str, told: Option<Told>) -> Result<(), CriError> {
        let (table, id) = (self.0.clone(), id.to_owned());
        blocking(move || {
            let Some(told) = told else {
                return table.remove(&id).map(|_| ());
            };
            let further = table
                .get(&id)?
                .is_some_and(|known| known.phase >= told.phase);
            if further {
                Ok(())
            } else {
                table.put(&id, &told)
            }
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StateError> + Send + 'static,
) -> Result<T, CriError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(CriError::TaskDied("the record of events".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ledger_outlives_the_daemon_and_never_goes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        let status = PodSandboxStatus {
            id: "s".into(),
            ..PodSandboxStatus::default()
        };
        {
            let ledger = Ledger::new(&StateStore::open(&path).unwrap());
            let told = Told::new("s", Phase::Started, Some(&status));
            ledger.tell("s", Some(told)).await.unwrap();
            let earlier = Told::new("s", Phase::Created, None);
            ledger.tell("s", Some(earlier)).await.unwrap();
            let container = Told::new("s", Phase::Created, None);
            ledger.tell("c", Some(container)).await.unwrap();
        }
        let ledger = Ledger::new(&StateStore::open(&path).unwrap());
        let all = ledger.all().await.unwrap();
        assert_eq!(all["s"].phase, Phase::Started);
        assert_eq!(all["s"].status(), Some(status));
        assert_eq!(all["c"].status(), None);
        ledger.tell("c", None).await.unwrap();
        assert_eq!(ledger.all().await.unwrap().len(), 1);
    }
}
