//! Which volume a claim gets: pure.

use super::types::{PersistentVolume, PersistentVolumeClaim};
use super::{Kind, Object, ObjectError, ObjectKey};
use quantity::Quantity;
use std::collections::BTreeMap;

/// Gives each claim without a volume the smallest free one that suits it, and
/// checks the others. Returns the claims that got one.
///
/// # Errors
/// If a claim names a volume that is another's or does not suit it.
pub(super) fn bind(
    all: &BTreeMap<ObjectKey, Object>,
) -> Result<BTreeMap<ObjectKey, Object>, ObjectError> {
    let volumes: Vec<(&ObjectKey, &PersistentVolume)> = all
        .iter()
        .filter_map(|(key, object)| match object {
            Object::PersistentVolume(volume) => Some((key, volume)),
            _ => None,
        })
        .collect();
    let mut owners: BTreeMap<&str, &ObjectKey> = BTreeMap::new();
    let mut waiting = Vec::new();
    for (key, object) in all {
        let Object::PersistentVolumeClaim(claim) = object else {
            continue;
        };
        let name = claim.spec.volume_name.as_str();
        if name.is_empty() {
            waiting.push((key, claim));
            continue;
        }
        let volume = ObjectKey::new(Kind::PersistentVolume, "", name);
        if let Some(owner) = owners.insert(name, key) {
            return Err(ObjectError::Claimed {
                claim: key.to_string(),
                volume: volume.to_string(),
                owner: owner.to_string(),
            });
        }
        let Some((_, found)) = volumes.iter().find(|(key, _)| **key == volume) else {
            continue;
        };
        if let Some(owner) = reserved_for(found).filter(|owner| owner != key) {
            return Err(ObjectError::Claimed {
                claim: key.to_string(),
                volume: volume.to_string(),
                owner: owner.to_string(),
            });
        }
        if let Err(message) = suits(claim, found) {
            return Err(ObjectError::Unsuited {
                claim: key.to_string(),
                volume: volume.to_string(),
                message,
            });
        }
    }
    let mut bound = BTreeMap::new();
    for (key, claim) in waiting {
        let free = volumes.iter().filter(|(name, volume)| {
            !owners.contains_key(name.name.as_str())
                && reserved_for(volume).is_none_or(|owner| owner == *key)
                && selected(claim, volume)
                && suits(claim, volume).is_ok()
        });
        // One that is reserved for it comes first.
        let best =
            free.min_by_key(|(_, volume)| (reserved_for(volume).is_none(), capacity(volume)));
        if let Some((name, _)) = best {
            owners.insert(&name.name, key);
            let mut claim = claim.clone();
            claim.spec.volume_name.clone_from(&name.name);
            bound.insert(key.clone(), Object::PersistentVolumeClaim(claim));
        }
    }
    Ok(bound)
}

fn capacity(volume: &PersistentVolume) -> Option<Quantity> {
    volume.spec.capacity.get("storage").copied()
}

/// The claim that a volume names.
fn reserved_for(volume: &PersistentVolume) -> Option<ObjectKey> {
    let claim = volume.spec.claim_ref.as_ref()?;
    let namespace = match claim.namespace.as_str() {
        "" => "default",
        namespace => namespace,
    };
    Some(ObjectKey::new(
        Kind::PersistentVolumeClaim,
        namespace,
        &claim.name,
    ))
}

fn selected(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let labels = &volume.metadata.labels;
    let wanted = claim.spec.selector.iter().flat_map(|s| &s.match_labels);
    let mut all = wanted.map(|(key, value)| labels.get(key) == Some(value));
    all.all(|holds| holds)
}

/// What a volume lacks of what a claim asks for.
fn suits(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Result<(), String> {
    let (wanted, has) = (&claim.spec, &volume.spec);
    if let Some(mode) = wanted
        .access_modes
        .iter()
        .find(|m| !has.access_modes.contains(m))
    {
        return Err(format!("it does not have the access mode {mode}"));
    }
    if wanted.storage_class_name != has.storage_class_name {
        return Err(format!(
            "its storage class is {:?}, not {:?}",
            has.storage_class_name, wanted.storage_class_name
        ));
    }
    if has.is_block() != (wanted.volume_mode == "Block") {
        return Err("its volumeMode is another one".to_owned());
    }
    let asked = wanted.resources.requests.get("storage").copied();
    if capacity(volume) < asked {
        return Err("it is smaller than what is asked for".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn all(objects: &[Object]) -> BTreeMap<ObjectKey, Object> {
        objects.iter().map(|o| (o.key(), o.clone())).collect()
    }

    fn volume(name: &str, storage: &str, rest: serde_json::Value) -> Object {
        let mut tree = json!({"metadata": {"name": name}, "spec": {
            "capacity": {"storage": storage}, "accessModes": ["ReadWriteOnce"],
            "local": {"path": "/srv"},
        }});
        let spec = tree["spec"].as_object_mut().unwrap();
        spec.extend(rest.as_object().unwrap().clone());
        Object::PersistentVolume(serde_json::from_value(tree).unwrap())
    }

    fn claim(name: &str, storage: &str, rest: serde_json::Value) -> Object {
        let mut tree = json!({"metadata": {"name": name}, "spec": {
            "resources": {"requests": {"storage": storage}}, "accessModes": ["ReadWriteOnce"],
        }});
        let spec = tree["spec"].as_object_mut().unwrap();
        spec.extend(rest.as_object().unwrap().clone());
        Object::PersistentVolumeClaim(serde_json::from_value(tree).unwrap())
    }

    fn bound(objects: &[Object]) -> Vec<(String, String)> {
        let bound = bind(&all(objects)).unwrap();
        let name = |(key, object): (ObjectKey, Object)| match object {
            Object::PersistentVolumeClaim(claim) => (key.name, claim.spec.volume_name),
            other => panic!("{other:?}"),
        };
        bound.into_iter().map(name).collect()
    }

    #[test]
    fn a_claim_gets_the_smallest_volume_that_suits_it() {
        let none = json!({});
        let got = bound(&[
            volume("large", "10Gi", none.clone()),
            volume("other-class", "1Gi", json!({"storageClassName": "x"})),
            volume("reserved", "1Gi", json!({"claimRef": {"name": "d"}})),
            volume("right", "2Gi", none.clone()),
            volume("small", "500Mi", none.clone()),
            volume("taken", "1Gi", none.clone()),
            claim("a", "1Gi", json!({"volumeName": "taken"})),
            claim("b", "1Gi", none.clone()),
            claim("c", "1Gi", none.clone()),
            claim("d", "1Gi", none.clone()),
            claim("e", "1Gi", none),
        ]);
        let want = [("b", "right"), ("c", "large"), ("d", "reserved")];
        assert_eq!(got, want.map(|(c, v)| (c.to_owned(), v.to_owned())));
    }

    #[test]
    fn a_volume_has_one_claim_and_it_must_suit() {
        let two = all(&[
            claim("a", "1Gi", json!({"volumeName": "v"})),
            claim("b", "1Gi", json!({"volumeName": "v"})),
        ]);
        assert!(matches!(bind(&two), Err(ObjectError::Claimed { .. })));
        let other = all(&[
            volume("v", "1Gi", json!({"claimRef": {"name": "x"}})),
            claim("a", "1Gi", json!({"volumeName": "v"})),
        ]);
        assert!(matches!(bind(&other), Err(ObjectError::Claimed { .. })));
        let small = all(&[
            volume("v", "1Mi", json!({})),
            claim("a", "1Gi", json!({"volumeName": "v"})),
        ]);
        assert!(matches!(bind(&small), Err(ObjectError::Unsuited { .. })));
        let modes = all(&[
            volume("v", "1Gi", json!({})),
            claim(
                "a",
                "1Gi",
                json!({"volumeName": "v", "accessModes": ["ReadWriteMany"]}),
            ),
        ]);
        assert!(matches!(bind(&modes), Err(ObjectError::Unsuited { .. })));
        let block = all(&[
            volume("v", "1Gi", json!({"volumeMode": "Block"})),
            claim("a", "1Gi", json!({"volumeName": "v"})),
        ]);
        assert!(matches!(bind(&block), Err(ObjectError::Unsuited { .. })));
    }
}
