//! What lists select, and what ids in requests mean: an id or its beginning.

use crate::convert::{container_state, sandbox_state};
use crate::error::CriError;
use crate::record::{CriContainer, CriSandbox};
use crate::service::RuntimeServer;
use cri_api::v1::{ContainerFilter, PodSandboxFilter};
use sandbox::{ContainerState, SandboxState};
use std::collections::HashMap;

/// Whether `labels` has all that `selector` asks for.
pub(crate) fn has_labels(
    labels: &HashMap<String, String>,
    selector: &HashMap<String, String>,
) -> bool {
    selector
        .iter()
        .all(|(name, value)| labels.get(name) == Some(value))
}

impl RuntimeServer {
    /// The sandboxes that clients see. One that is being made is not there yet.
    pub(crate) fn cri_sandboxes(&self) -> Vec<CriSandbox> {
        let sandboxes = self.sandboxes.sandboxes();
        sandboxes
            .into_iter()
            .filter(|sandbox| sandbox.state != SandboxState::Creating)
            .filter_map(|sandbox| readable(CriSandbox::new(sandbox)?))
            .collect()
    }

    /// The containers that clients see.
    pub(crate) fn cri_containers(&self) -> Vec<CriContainer> {
        let sandboxes = self.sandboxes.sandboxes();
        sandboxes
            .iter()
            .flat_map(|sandbox| self.containers_of(&sandbox.spec.id))
            .collect()
    }

    /// The containers of a sandbox that clients see; none of an unknown one.
    pub(crate) fn containers_of(&self, sandbox_id: &str) -> Vec<CriContainer> {
        let containers = self.sandboxes.containers(sandbox_id);
        containers
            .into_iter()
            .filter(|container| container.state != ContainerState::Creating)
            .filter_map(|container| readable(CriContainer::new(container)?))
            .collect()
    }

    /// The sandbox of that id, or with the only id that begins so.
    pub(crate) fn find_sandbox(&self, id: &str) -> Result<CriSandbox, CriError> {
        required("pod_sandbox_id", id)?;
        if let Ok(sandbox) = self.sandboxes.sandbox(id)
            && sandbox.state != SandboxState::Creating
            && let Some(found) = CriSandbox::new(sandbox)
        {
            return found;
        }
        only("sandbox", id, self.cri_sandboxes(), CriSandbox::id)
    }

    /// The container of that id, or with the only id that begins so.
    pub(crate) fn find_container(&self, id: &str) -> Result<CriContainer, CriError> {
        required("container_id", id)?;
        if let Ok(container) = self.sandboxes.container(id)
            && container.state != ContainerState::Creating
            && let Some(found) = CriContainer::new(container)
        {
            return found;
        }
        only("container", id, self.cri_containers(), CriContainer::id)
    }
}

/// Drops what cannot be read, saying so: a list is not to fail for it.
fn readable<T>(found: Result<T, CriError>) -> Option<T> {
    found
        .inspect_err(|error| tracing::warn!(%error, "left out of lists"))
        .ok()
}

fn required(field: &str, id: &str) -> Result<(), CriError> {
    if id.is_empty() {
        return Err(CriError::invalid(field, "required"));
    }
    Ok(())
}

/// The only one whose id begins with `prefix`.
fn only<T>(
    kind: &'static str,
    prefix: &str,
    all: Vec<T>,
    id: impl Fn(&T) -> &str,
) -> Result<T, CriError> {
    let mut fitting: Vec<T> = all
        .into_iter()
        .filter(|item| id(item).starts_with(prefix))
        .collect();
    match (fitting.pop(), fitting.len()) {
        (Some(found), 0) => Ok(found),
        (None, _) => Err(CriError::NotFound {
            kind,
            id: prefix.to_owned(),
        }),
        (Some(_), others) => Err(CriError::Ambiguous {
            kind,
            prefix: prefix.to_owned(),
            count: others + 1,
        }),
    }
}

/// Success for what is gone already.
pub(crate) fn or_gone<T>(found: Result<T, CriError>) -> Result<Option<T>, CriError> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(CriError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a list with that filter has the sandbox.
pub(crate) fn selects_sandbox(filter: &PodSandboxFilter, sandbox: &CriSandbox) -> bool {
    let state = filter.state.as_ref();
    sandbox.id().starts_with(&filter.id)
        && state.is_none_or(|wanted| wanted.state == i32::from(sandbox_state(&sandbox.sandbox)))
        && has_labels(&sandbox.config.labels, &filter.label_selector)
}

/// Whether a list with that filter has the container.
pub(crate) fn selects_container(filter: &ContainerFilter, container: &CriContainer) -> bool {
    let state = filter.state.as_ref();
    let of = &container.container;
    container.id().starts_with(&filter.id)
        && of.sandbox_id.starts_with(&filter.pod_sandbox_id)
        && state.is_none_or(|wanted| wanted.state == i32::from(container_state(of)))
        && has_labels(&container.config.labels, &filter.label_selector)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(prefix: &str) -> Result<&'static str, CriError> {
        only("sandbox", prefix, vec!["abc1", "abd2", "x"], |id| id)
    }

    #[test]
    fn beginning_of_one_id_is_enough() {
        assert_eq!(find("abc").unwrap(), "abc1");
        assert_eq!(find("x").unwrap(), "x");
        assert!(matches!(
            find("ab"),
            Err(CriError::Ambiguous { count: 2, .. })
        ));
        assert!(matches!(find("b"), Err(CriError::NotFound { .. })));
    }

    #[test]
    fn labels_select_by_equality_of_all() {
        let map = |pairs: &[(&str, &str)]| -> HashMap<String, String> {
            let owned = pairs.iter().map(|(a, b)| (a.to_string(), b.to_string()));
            owned.collect()
        };
        let labels = map(&[("a", "1"), ("b", "2")]);
        assert!(has_labels(&labels, &map(&[])));
        assert!(has_labels(&labels, &map(&[("a", "1"), ("b", "2")])));
        assert!(!has_labels(&labels, &map(&[("a", "2")])));
        assert!(!has_labels(&labels, &map(&[("c", "")])));
    }

    #[test]
    fn what_is_gone_is_no_error() {
        assert!(matches!(or_gone(find("nothing")), Ok(None)));
        assert!(matches!(or_gone(find("x")), Ok(Some("x"))));
        assert!(or_gone(find("ab")).is_err());
    }
}
