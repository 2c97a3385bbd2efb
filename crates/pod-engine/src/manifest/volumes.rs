//! Volumes and their mounts, as manifests write them.

use super::downward::{Place, check_field, check_resource};
use super::env::object_name;
use super::names::is_dns_label;
use super::validate::{Faults, LABEL_FORM, no_nul};
use super::{
    Container, EmptyDir, FieldRef, ImagePullPolicy, MountPropagation, RecursiveReadOnly,
    ResourceFieldRef, VolumeMount,
};
use crate::objects::{HostPath, check_host_path, is_key};
use serde::{Deserialize, Deserializer, de};
use std::collections::BTreeSet;
use std::fmt;

/// Most volumes of a pod.
const MAX_VOLUMES: usize = 256;
/// Longest path of a file in a volume.
const MAX_PATH: usize = 4096;
/// Longest name of a file.
const MAX_FILE_NAME: usize = 255;

/// A volume: one of these kinds.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "documented by Kubernetes")]
pub struct Volume {
    pub name: String,
    pub empty_dir: Option<EmptyDir>,
    pub config_map: Option<ConfigMapVolume>,
    pub secret: Option<SecretVolume>,
    pub projected: Option<ProjectedVolume>,
    #[serde(rename = "downwardAPI")]
    pub downward_api: Option<DownwardVolume>,
    pub host_path: Option<HostPath>,
    pub persistent_volume_claim: Option<ClaimVolume>,
    pub image: Option<ImageVolume>,
}

/// `configMap`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "documented by Kubernetes")]
pub struct ConfigMapVolume {
    pub name: String,
    pub items: Vec<KeyToPath>,
    pub default_mode: Option<FileMode>,
    pub optional: bool,
}

/// `secret`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "documented by Kubernetes")]
pub struct SecretVolume {
    pub secret_name: String,
    pub items: Vec<KeyToPath>,
    pub default_mode: Option<FileMode>,
    pub optional: bool,
}

/// `projected`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "documented by Kubernetes")]
pub struct ProjectedVolume {
    pub sources: Vec<Projection>,
    pub default_mode: Option<FileMode>,
}

/// A source of a projected volume: one of these.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "documented by Kubernetes")]
pub struct Projection {
    pub config_map: Option<ObjectProjection>,
    pub secret: Option<ObjectProjection>,
    #[serde(rename = "downwardAPI")]
    pub downward_api: Option<DownwardProjection>,
}

/// An object's keys as files; without items: all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "documented by Kubernetes")]
pub struct ObjectProjection {
    pub name: String,
    pub items: Vec<KeyToPath>,
    pub optional: bool,
}

/// `downwardAPI` of a projected volume.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "documented by Kubernetes")]
pub struct DownwardProjection {
    pub items: Vec<DownwardFile>,
}

/// `downwardAPI`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "documented by Kubernetes")]
pub struct DownwardVolume {
    pub items: Vec<DownwardFile>,
    pub default_mode: Option<FileMode>,
}

/// A fact of the pod as a file.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "documented by Kubernetes")]
pub struct DownwardFile {
    pub path: String,
    pub field_ref: Option<FieldRef>,
    pub resource_field_ref: Option<ResourceFieldRef>,
    pub mode: Option<FileMode>,
}

/// `items`: a key and the file it becomes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "documented by Kubernetes")]
pub struct KeyToPath {
    pub key: String,
    pub path: String,
    pub mode: Option<FileMode>,
}

/// `persistentVolumeClaim`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "documented by Kubernetes")]
pub struct ClaimVolume {
    pub claim_name: String,
    pub read_only: bool,
}

/// `image`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "documented by Kubernetes")]
pub struct ImageVolume {
    pub reference: String,
    pub pull_policy: Option<ImagePullPolicy>,
}

/// Permission bits of a file: a number, or octal digits with a leading 0, which
/// is a number in Kubernetes' YAML and a text in others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileMode(pub u32);

impl<'de> Deserialize<'de> for FileMode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = FileMode;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("permission bits from 0 to 0777 (511)")
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<FileMode, E> {
                match u32::try_from(number) {
                    Ok(mode @ 0..=0o777) => Ok(FileMode(mode)),
                    _ => Err(E::invalid_value(de::Unexpected::Unsigned(number), &self)),
                }
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<FileMode, E> {
                match u64::try_from(number) {
                    Ok(number) => self.visit_u64(number),
                    Err(_) => Err(E::invalid_value(de::Unexpected::Signed(number), &self)),
                }
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<FileMode, E> {
                let octal = text.strip_prefix('0').filter(|t| !t.starts_with('+'));
                match octal.map(|digits| u64::from_str_radix(digits, 8)) {
                    Some(Ok(mode)) => self.visit_u64(mode),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl Volume {
    /// The object projections it consists of, those of other kinds left out.
    pub(crate) fn projections(&self) -> Option<(Vec<Projection>, Option<FileMode>)> {
        if let Some(volume) = &self.projected {
            return Some((volume.sources.clone(), volume.default_mode));
        }
        let mut one = Projection::default();
        let mode = if let Some(volume) = &self.config_map {
            one.config_map = Some(ObjectProjection {
                name: volume.name.clone(),
                items: volume.items.clone(),
                optional: volume.optional,
            });
            volume.default_mode
        } else if let Some(volume) = &self.secret {
            one.secret = Some(ObjectProjection {
                name: volume.secret_name.clone(),
                items: volume.items.clone(),
                optional: volume.optional,
            });
            volume.default_mode
        } else if let Some(volume) = &self.downward_api {
            one.downward_api = Some(DownwardProjection {
                items: volume.items.clone(),
            });
            volume.default_mode
        } else {
            return None;
        };
        Some((vec![one], mode))
    }

    fn kinds(&self) -> usize {
        [
            self.empty_dir.is_some(),
            self.config_map.is_some(),
            self.secret.is_some(),
            self.projected.is_some(),
            self.downward_api.is_some(),
            self.host_path.is_some(),
            self.persistent_volume_claim.is_some(),
            self.image.is_some(),
        ]
        .into_iter()
        .filter(|is| *is)
        .count()
    }
}

pub(super) fn check(volumes: &[Volume], containers: &[&Container], faults: &mut Faults<'_>) {
    faults.require(
        volumes.len() <= MAX_VOLUMES,
        "spec.volumes",
        "more than 256 volumes",
    );
    let mut names = BTreeSet::new();
    for (i, volume) in volumes.iter().enumerate() {
        let path = format!("spec.volumes[{i}]");
        if !is_dns_label(&volume.name) {
            faults.add(format!("{path}.name"), LABEL_FORM);
        } else if !names.insert(&volume.name) {
            faults.add(
                format!("{path}.name"),
                format!("{:?} is the name of another volume", volume.name),
            );
        }
        faults.require(
            volume.kinds() == 1,
            &path,
            "must be of one kind: emptyDir, configMap, secret, projected, downwardAPI, hostPath, \
             persistentVolumeClaim or image",
        );
        if let Some(dir) = &volume.empty_dir {
            empty_dir(dir, &format!("{path}.emptyDir"), faults);
        }
        if let Some(host) = &volume.host_path {
            check_host_path(host, &format!("{path}.hostPath"), faults);
        }
        if let Some(claim) = &volume.persistent_volume_claim {
            let path = format!("{path}.persistentVolumeClaim.claimName");
            faults.require(!claim.claim_name.is_empty(), &path, "required");
        }
        if let Some(image) = &volume.image {
            let text = &image.reference;
            faults.require(
                (1..=512).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic()),
                &format!("{path}.image.reference"),
                "must be an image reference",
            );
        }
        object_volumes(volume, &path, containers, faults);
    }
}

fn empty_dir(dir: &EmptyDir, path: &str, faults: &mut Faults<'_>) {
    if !["", "Memory"].contains(&dir.medium.as_str()) {
        let message = format!("{:?}: must be \"\" or \"Memory\"", dir.medium);
        faults.add(format!("{path}.medium"), message);
    }
    faults.require(
        dir.size_limit.is_none_or(|limit| !limit.is_negative()),
        &format!("{path}.sizeLimit"),
        "must not be negative",
    );
}

/// Volumes whose files are made from objects and from the pod itself.
fn object_volumes(volume: &Volume, path: &str, containers: &[&Container], faults: &mut Faults<'_>) {
    if let Some(map) = &volume.config_map {
        let path = format!("{path}.configMap");
        object_name(&map.name, &path, faults);
        items(&map.items, &path, faults);
    }
    if let Some(secret) = &volume.secret {
        let path = format!("{path}.secret");
        faults.require(
            super::names::is_dns_subdomain(&secret.secret_name),
            &format!("{path}.secretName"),
            super::validate::SUBDOMAIN_FORM,
        );
        items(&secret.items, &path, faults);
    }
    if let Some(downward) = &volume.downward_api {
        downward_files(
            &downward.items,
            &format!("{path}.downwardAPI"),
            containers,
            faults,
        );
    }
    let Some(projected) = &volume.projected else {
        return;
    };
    for (i, source) in projected.sources.iter().enumerate() {
        let path = format!("{path}.projected.sources[{i}]");
        let named = [
            source.config_map.is_some(),
            source.secret.is_some(),
            source.downward_api.is_some(),
        ];
        faults.require(
            named.into_iter().filter(|is| *is).count() == 1,
            &path,
            "must have one of configMap, secret and downwardAPI",
        );
        let objects = [
            ("configMap", &source.config_map),
            ("secret", &source.secret),
        ];
        for (kind, object) in objects {
            let Some(object) = object else { continue };
            object_name(&object.name, &format!("{path}.{kind}"), faults);
            items(&object.items, &format!("{path}.{kind}"), faults);
        }
        if let Some(downward) = &source.downward_api {
            downward_files(
                &downward.items,
                &format!("{path}.downwardAPI"),
                containers,
                faults,
            );
        }
    }
}

fn items(items: &[KeyToPath], path: &str, faults: &mut Faults<'_>) {
    for (i, item) in items.iter().enumerate() {
        let path = format!("{path}.items[{i}]");
        faults.require(
            is_key(&item.key),
            &format!("{path}.key"),
            "must be a key: letters, digits, '-', '_' and '.'",
        );
        file_path(&item.path, &format!("{path}.path"), faults);
    }
}

fn downward_files(
    files: &[DownwardFile],
    path: &str,
    containers: &[&Container],
    faults: &mut Faults<'_>,
) {
    for (i, file) in files.iter().enumerate() {
        let path = format!("{path}.items[{i}]");
        file_path(&file.path, &format!("{path}.path"), faults);
        match (&file.field_ref, &file.resource_field_ref) {
            (Some(field), None) => {
                check_field(field, &format!("{path}.fieldRef"), Place::Volume, faults);
            }
            (None, Some(resource)) => {
                check_resource(
                    resource,
                    &format!("{path}.resourceFieldRef"),
                    containers,
                    faults,
                );
            }
            _ => faults.add(&path, "must have one of fieldRef and resourceFieldRef"),
        }
    }
}

fn file_path(path: &str, field: &str, faults: &mut Faults<'_>) {
    faults.require(
        is_file_path(path),
        field,
        "must be a relative path without '.', '..' or empty parts, and not begin with '..'",
    );
}

/// Where a file of a volume may be: beneath the volume, and not among the names
/// by which its files are swapped.
pub(crate) fn is_file_path(path: &str) -> bool {
    let part =
        |part: &str| !part.is_empty() && part.len() <= MAX_FILE_NAME && part != "." && part != "..";
    path.len() <= MAX_PATH
        && !path.starts_with("..")
        && !path.contains('\0')
        && path.split('/').all(part)
}

/// Where in a volume a mount may begin; empty: the whole of it.
pub(crate) fn is_sub_path(path: &str) -> bool {
    !path.starts_with('/') && !path.contains('\0') && !path.split('/').any(|part| part == "..")
}

pub(super) fn check_mounts(
    path: &str,
    mounts: &[VolumeMount],
    volumes: &[Volume],
    faults: &mut Faults<'_>,
) {
    let mut points = BTreeSet::new();
    for (i, mount) in mounts.iter().enumerate() {
        let path = format!("{path}.volumeMounts[{i}]");
        if !volumes.iter().any(|v| v.name == mount.name) {
            let message = format!("{:?}: the pod has no volume of that name", mount.name);
            faults.add(format!("{path}.name"), message);
        }
        let point = &mount.mount_path;
        let at = format!("{path}.mountPath");
        if !point.starts_with('/') {
            faults.add(&at, "must be an absolute path");
        } else if point.split('/').any(|part| part == "..") {
            faults.add(&at, "must not contain '..'");
        } else if point.trim_end_matches('/').is_empty() {
            faults.add(&at, "cannot be the root directory");
        } else if !points.insert(point.trim_end_matches('/')) {
            faults.add(&at, format!("{point:?} is another mount's path"));
        }
        no_nul(&at, point, faults);
        for (field, sub) in [
            ("subPath", &mount.sub_path),
            ("subPathExpr", &mount.sub_path_expr),
        ] {
            faults.require(
                is_sub_path(sub),
                &format!("{path}.{field}"),
                "must be a relative path without '..'",
            );
        }
        faults.require(
            mount.sub_path.is_empty() || mount.sub_path_expr.is_empty(),
            &format!("{path}.subPathExpr"),
            "must not stand beside subPath",
        );
        propagation(mount, &path, faults);
    }
}

pub(super) fn check_devices(
    path: &str,
    container: &Container,
    volumes: &[Volume],
    faults: &mut Faults<'_>,
) {
    let mounts = container.volume_mounts.iter();
    let mut points: BTreeSet<&str> = mounts.map(|m| m.mount_path.trim_end_matches('/')).collect();
    let mut names = BTreeSet::new();
    for (i, device) in container.volume_devices.iter().enumerate() {
        let path = format!("{path}.volumeDevices[{i}]");
        let name = format!("{path}.name");
        match volumes.iter().find(|v| v.name == device.name) {
            None => {
                let message = format!("{:?}: the pod has no volume of that name", device.name);
                faults.add(&name, message);
            }
            Some(volume) => faults.require(
                volume.persistent_volume_claim.is_some(),
                &name,
                "must be a volume of the kind persistentVolumeClaim",
            ),
        }
        let mut mounts = container.volume_mounts.iter();
        faults.require(
            names.insert(&device.name) && !mounts.any(|mount| mount.name == device.name),
            &name,
            "the container has this volume already",
        );
        let point = &device.device_path;
        let at = format!("{path}.devicePath");
        if !point.starts_with('/') || point.trim_end_matches('/').is_empty() {
            faults.add(&at, "must be an absolute path");
        } else if point.split('/').any(|part| part == "..") {
            faults.add(&at, "must not contain '..'");
        } else if !points.insert(point.trim_end_matches('/')) {
            faults.add(&at, format!("{point:?} is the path of something else"));
        }
        no_nul(&at, point, faults);
    }
}

fn propagation(mount: &VolumeMount, path: &str, faults: &mut Faults<'_>) {
    faults.require(
        mount.mount_propagation != Some(MountPropagation::Bidirectional),
        &format!("{path}.mountPropagation"),
        "Bidirectional is not possible: a mount made in the pod's virtual machine is its \
         kernel's own and cannot appear on the node",
    );
    let recursive = matches!(
        mount.recursive_read_only,
        Some(RecursiveReadOnly::Enabled | RecursiveReadOnly::IfPossible)
    );
    let field = format!("{path}.recursiveReadOnly");
    faults.require(!recursive || mount.read_only, &field, "needs readOnly");
    let follows = mount.mount_propagation == Some(MountPropagation::HostToContainer);
    faults.require(
        !recursive || !follows,
        &field,
        "needs mountPropagation None: what is mounted later could be written",
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::{Component, Path};

    #[test]
    fn modes_are_numbers_or_octal_digits() {
        let mode = |text: &str| serde_json::from_str::<FileMode>(text).ok().map(|m| m.0);
        for (text, want) in [
            ("256", Some(0o400)),
            ("\"0400\"", Some(0o400)),
            ("\"0\"", None),
            ("0", Some(0)),
            ("511", Some(0o777)),
            ("512", None),
            ("-1", None),
            ("\"0+7\"", None),
            ("\"0888\"", None),
            ("\"400\"", None),
        ] {
            assert_eq!(mode(text), want, "{text}");
        }
    }

    proptest! {
        #[test]
        fn file_paths_stay_beneath_their_volume(path in "[./a\\-\u{e4}\0]{0,12}") {
            if is_file_path(&path) {
                let normal = |c: Component<'_>| matches!(c, Component::Normal(_));
                prop_assert!(Path::new(&path).components().all(normal), "{path:?}");
                prop_assert!(!path.starts_with(".."));
            }
            if is_sub_path(&path) {
                let inside = |c: Component<'_>| matches!(c, Component::Normal(_) | Component::CurDir);
                prop_assert!(Path::new(&path).components().all(inside), "{path:?}");
            }
        }
    }
}
