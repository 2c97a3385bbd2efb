//! The files of a volume that is made of objects and of the pod's own facts: pure.

use super::NotMounted;
use crate::facts::Facts;
use crate::manifest::{
    DownwardFile, Field, KeyToPath, ObjectProjection, Place, Projection, Volume,
};
use crate::objects::Objects;
use std::collections::BTreeMap;

/// Permission bits of files for which the manifest names none.
const DEFAULT_MODE: u32 = 0o644;
/// Most bytes of a volume: it lies in the host's memory.
const MAX_VOLUME: usize = 64 << 20;

/// A file of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct File {
    pub(super) content: Vec<u8>,
    pub(super) mode: u32,
}

/// The files of a volume by their paths in it. None is another's directory.
pub(super) type Payload = BTreeMap<String, File>;

/// The data of an object: the value of a key, all keys.
type Data = BTreeMap<String, Vec<u8>>;

/// The files of `volume`; `None` if it is of another kind.
pub(super) fn payload(
    volume: &Volume,
    facts: &Facts<'_>,
    objects: &Objects,
) -> Option<Result<Payload, NotMounted>> {
    let (sources, mode) = volume.projections()?;
    let mode = mode.map_or(DEFAULT_MODE, |mode| mode.0);
    let mut payload = Payload::new();
    for source in &sources {
        if let Err(error) = add(&mut payload, source, mode, facts, objects) {
            return Some(Err(error));
        }
    }
    Some(check(&payload).map(|()| payload))
}

fn add(
    payload: &mut Payload,
    source: &Projection,
    mode: u32,
    facts: &Facts<'_>,
    objects: &Objects,
) -> Result<(), NotMounted> {
    let namespace = &facts.pod.namespace;
    if let Some(wanted) = &source.config_map {
        let data = objects.config_map(namespace, &wanted.name).map(|map| {
            let keys = map.data.keys().chain(map.binary_data.keys());
            let entry = |key: &String| Some((key.clone(), map.get(key)?.to_vec()));
            keys.filter_map(entry).collect()
        });
        add_object(payload, "ConfigMap", wanted, mode, namespace, data)?;
    }
    if let Some(wanted) = &source.secret {
        let data = objects.secret(namespace, &wanted.name);
        let data = data.map(|secret| secret.data.into_iter().map(|(k, v)| (k, v.0)).collect());
        add_object(payload, "Secret", wanted, mode, namespace, data)?;
    }
    for file in source.downward_api.iter().flat_map(|d| &d.items) {
        let content = fact(file, facts).into_bytes();
        let mode = file.mode.map_or(mode, |mode| mode.0);
        payload.insert(file.path.clone(), File { content, mode });
    }
    Ok(())
}

fn fact(file: &DownwardFile, facts: &Facts<'_>) -> String {
    if let Some(resource) = &file.resource_field_ref {
        // A volume's reference names its container.
        return match facts.manifest.spec.containers.first() {
            Some(any) => facts.resource(resource, any),
            None => String::new(),
        };
    }
    let field = file.field_ref.as_ref();
    let field = field.and_then(|f| Field::parse(&f.field_path, Place::Volume).ok());
    field.map_or_else(String::new, |field| facts.field(&field))
}

fn add_object(
    payload: &mut Payload,
    kind: &'static str,
    wanted: &ObjectProjection,
    mode: u32,
    namespace: &str,
    data: Option<Data>,
) -> Result<(), NotMounted> {
    let Some(mut data) = data else {
        if wanted.optional {
            return Ok(());
        }
        return Err(NotMounted::NoObject {
            kind,
            namespace: namespace.to_owned(),
            name: wanted.name.clone(),
        });
    };
    if wanted.items.is_empty() {
        payload.extend(
            data.into_iter()
                .map(|(key, content)| (key, File { content, mode })),
        );
        return Ok(());
    }
    for KeyToPath {
        key,
        path,
        mode: own,
    } in &wanted.items
    {
        let content = match data.get_mut(key) {
            Some(content) => content.clone(),
            None if wanted.optional => continue,
            None => {
                return Err(NotMounted::NoKey {
                    kind,
                    namespace: namespace.to_owned(),
                    name: wanted.name.clone(),
                    key: key.clone(),
                });
            }
        };
        let mode = own.map_or(mode, |mode| mode.0);
        payload.insert(path.clone(), File { content, mode });
    }
    Ok(())
}

/// A path cannot be both a file and a directory.
fn check(payload: &Payload) -> Result<(), NotMounted> {
    for path in payload.keys() {
        let mut parents = path.match_indices('/').map(|(at, _)| &path[..at]);
        if let Some(file) = parents.find(|parent| payload.contains_key(*parent)) {
            return Err(NotMounted::Conflict {
                file: file.to_owned(),
                path: path.clone(),
            });
        }
    }
    let bytes: usize = payload.values().map(|file| file.content.len()).sum();
    if bytes > MAX_VOLUME {
        return Err(NotMounted::TooLarge {
            bytes,
            most: MAX_VOLUME,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::tests::pod_of;
    use crate::manifest::{NodeLimits, Stream};
    use state_store::StateStore;

    const OBJECTS: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: {a: '1', b: '2'}\nbinaryData: {raw: AAE=}\n---\napiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {p: hidden}\n";

    /// The files of a volume as lines: path, mode, content.
    fn files(volume: &str) -> Result<Vec<String>, NotMounted> {
        let dir = tempfile::tempdir().unwrap();
        let state = StateStore::open(&dir.path().join("state.redb")).unwrap();
        let objects = Objects::open(&state).unwrap();
        let stream = Stream::parse(
            OBJECTS,
            &NodeLimits {
                memory_mib: 1024,
                network: true,
            },
        )
        .unwrap();
        objects.apply(stream.objects).unwrap();
        let (pod, manifest, size) = pod_of(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, labels: {{l: v}}}}\nspec: {{containers: [{{name: c, image: i, resources: {{limits: {{cpu: 1}}}}}}], volumes: [{{name: v, {volume}}}]}}"
        ));
        let facts = Facts {
            pod: &pod,
            manifest: &manifest,
            size,
            scratch_mib: 1024,
        };
        let payload = payload(&manifest.spec.volumes[0], &facts, &objects).unwrap()?;
        let line = |(path, file): (String, File)| {
            let text = String::from_utf8_lossy(&file.content).into_owned();
            format!("{path} {:o} {text}", file.mode)
        };
        Ok(payload.into_iter().map(line).collect())
    }

    #[test]
    fn whole_objects_and_single_keys() {
        let all = files("configMap: {name: m}").unwrap();
        assert_eq!(all, ["a 644 1", "b 644 2", "raw 644 \0\u{1}"]);
        let some = files(
            "secret: {secretName: s, defaultMode: 0400, items: [{key: p, path: d/q}, {key: p, path: r, mode: 511}]}",
        );
        assert_eq!(some.unwrap(), ["d/q 400 hidden", "r 777 hidden"]);
    }

    #[test]
    fn projections_lie_side_by_side() {
        let got = files(
            "projected: {defaultMode: 288, sources: [{configMap: {name: m, items: [{key: a, path: x}]}}, {secret: {name: s}}, {downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}, {path: cpu, mode: 0600, resourceFieldRef: {containerName: c, resource: limits.cpu, divisor: 1m}}]}}]}",
        );
        let want = [
            "cpu 600 1000",
            "labels 440 l=\"v\"",
            "p 440 hidden",
            "x 440 1",
        ];
        assert_eq!(got.unwrap(), want);
    }

    #[test]
    fn what_is_missing_holds_the_volume_up_unless_it_is_optional() {
        let no_object = files("configMap: {name: none}").unwrap_err();
        assert!(
            no_object
                .to_string()
                .contains("ConfigMap default/none is not there")
        );
        assert_eq!(
            files("configMap: {name: none, optional: true}")
                .unwrap()
                .len(),
            0
        );
        let no_key = files("secret: {secretName: s, items: [{key: z, path: z}]}").unwrap_err();
        assert!(no_key.to_string().contains("has no key \"z\""), "{no_key}");
        let items = "secret: {secretName: s, optional: true, items: [{key: z, path: z}, {key: p, path: p}]}";
        assert_eq!(files(items).unwrap().len(), 1);
    }

    #[test]
    fn a_file_is_no_directory() {
        let conflict =
            files("configMap: {name: m, items: [{key: a, path: x}, {key: b, path: x/y}]}");
        assert!(matches!(conflict, Err(NotMounted::Conflict { .. })));
    }
}
