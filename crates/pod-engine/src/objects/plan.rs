//! What an application of objects changes: pure.

use super::bind::bind;
use super::{Object, ObjectError, ObjectKey};
use std::collections::BTreeMap;

/// Most objects that are kept.
const MAX_OBJECTS: usize = 4096;
/// Most bytes of data that all of them hold: they are held in memory, too.
const MAX_TOTAL: usize = 64 << 20;

/// What became of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is new.
    Created,
    /// It differs from what was there.
    Configured,
    /// It is as it was.
    Unchanged,
}

/// An object that was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Its name.
    pub key: ObjectKey,
    /// What became of it.
    pub outcome: Outcome,
}

/// The objects to write and what is to be said of those given.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) writes: BTreeMap<ObjectKey, Object>,
    pub(super) applied: Vec<Applied>,
}

/// Puts `given` over `held`.
///
/// # Errors
/// If any of them cannot be: then none is.
pub(super) fn plan(
    mut held: BTreeMap<ObjectKey, Object>,
    given: Vec<Object>,
) -> Result<Plan, ObjectError> {
    let mut plan = Plan::default();
    for mut object in given {
        let key = object.key();
        let outcome = match held.get(&key) {
            None => Outcome::Created,
            Some(old) => {
                keep_binding(old, &mut object);
                if *old == object {
                    Outcome::Unchanged
                } else {
                    changeable(&key, old, &object)?;
                    Outcome::Configured
                }
            }
        };
        if outcome != Outcome::Unchanged {
            plan.writes.insert(key.clone(), object.clone());
            held.insert(key.clone(), object);
        }
        plan.applied.push(Applied { key, outcome });
    }
    let too_many = |most, what| Err(ObjectError::TooMany { most, what });
    if held.len() > MAX_OBJECTS {
        return too_many(MAX_OBJECTS, "objects");
    }
    let sizes = held.values().flat_map(Object::data_sizes);
    if sizes.map(|(_, bytes)| bytes).sum::<usize>() > MAX_TOTAL {
        return too_many(MAX_TOTAL, "bytes of data in all objects");
    }
    plan.writes.extend(bind(&held)?);
    Ok(plan)
}

/// A claim that is given again without a volume keeps the one it has.
fn keep_binding(old: &Object, new: &mut Object) {
    if let (Object::PersistentVolumeClaim(old), Object::PersistentVolumeClaim(new)) = (old, new)
        && new.spec.volume_name.is_empty()
    {
        new.spec.volume_name.clone_from(&old.spec.volume_name);
    }
}

fn changeable(key: &ObjectKey, old: &Object, new: &Object) -> Result<(), ObjectError> {
    let fixed = |field| {
        let object = key.to_string();
        Err(ObjectError::Fixed { object, field })
    };
    match (old, new) {
        (Object::ConfigMap(o), Object::ConfigMap(n)) if o.immutable => {
            let same = n.immutable && o.data == n.data && o.binary_data == n.binary_data;
            same.then_some(())
                .ok_or_else(|| ObjectError::Immutable(key.to_string()))
        }
        (Object::Secret(o), Object::Secret(n)) => {
            if o.kind != n.kind {
                return fixed("type");
            }
            let same = !o.immutable || (n.immutable && o.data == n.data);
            same.then_some(())
                .ok_or_else(|| ObjectError::Immutable(key.to_string()))
        }
        (Object::PersistentVolume(o), Object::PersistentVolume(n)) => {
            if (&o.spec.local, &o.spec.host_path) != (&n.spec.local, &n.spec.host_path) {
                return fixed("spec.local or spec.hostPath");
            }
            Ok(())
        }
        (Object::PersistentVolumeClaim(o), Object::PersistentVolumeClaim(n)) => {
            // A claim that waits for a volume may name one.
            let mut before = o.spec.clone();
            if before.volume_name.is_empty() {
                before.volume_name.clone_from(&n.spec.volume_name);
            }
            if before != n.spec {
                return fixed("spec");
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::types::ConfigMap;

    fn map(name: &str, value: &str, immutable: bool) -> Object {
        let mut map = ConfigMap {
            immutable,
            data: BTreeMap::from([("k".to_owned(), value.to_owned())]),
            ..ConfigMap::default()
        };
        map.metadata.name = name.to_owned();
        Object::ConfigMap(map)
    }

    fn held(objects: &[Object]) -> BTreeMap<ObjectKey, Object> {
        objects.iter().map(|o| (o.key(), o.clone())).collect()
    }

    #[test]
    fn only_what_differs_is_written() {
        let held = held(&[map("same", "1", false), map("other", "1", false)]);
        let given = vec![
            map("same", "1", false),
            map("other", "2", false),
            map("new", "", false),
        ];
        let plan = plan(held, given).unwrap();
        let outcomes: Vec<Outcome> = plan.applied.iter().map(|a| a.outcome).collect();
        assert_eq!(
            outcomes,
            [Outcome::Unchanged, Outcome::Configured, Outcome::Created]
        );
        assert_eq!(plan.writes.len(), 2);
    }

    #[test]
    fn immutable_objects_stay_as_they_are() {
        let before = held(&[map("m", "1", true)]);
        assert!(plan(before.clone(), vec![map("m", "1", true)]).is_ok());
        for change in [map("m", "2", true), map("m", "1", false)] {
            let refused = plan(before.clone(), vec![change]).unwrap_err();
            assert!(matches!(refused, ObjectError::Immutable(_)), "{refused}");
        }
        let sealed = plan(held(&[map("m", "1", false)]), vec![map("m", "1", true)]).unwrap();
        assert_eq!(sealed.applied[0].outcome, Outcome::Configured);
    }

    #[test]
    fn more_than_the_node_keeps_is_refused() {
        let many: Vec<Object> = (0..=MAX_OBJECTS)
            .map(|i| map(&format!("m{i}"), "", false))
            .collect();
        assert!(matches!(
            plan(held(&[]), many),
            Err(ObjectError::TooMany { .. })
        ));
        let text = "x".repeat(1 << 20);
        let large: Vec<Object> = (0..65)
            .map(|i| map(&format!("m{i}"), &text, false))
            .collect();
        assert!(matches!(
            plan(held(&[]), large),
            Err(ObjectError::TooMany { .. })
        ));
    }
}
