//! The mounts of one instance of a container.

use crate::env::Vars;
use crate::expand::expand;
use crate::facts::Facts;
use crate::manifest::{
    Container, MountPropagation, RecursiveReadOnly, Volume, VolumeMount, is_sub_path,
};
use crate::objects::Objects;
use crate::plan;
use crate::volumes::{NotMounted, Volumes};
use sandbox::{
    BlockVolumeSpec, DeviceOf, DeviceSpec, HostMount, MountSource, MountSpec, PathVolume, ShownAs,
};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Why a mount cannot be made now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MountError {
    #[error("volume {volume:?} cannot be mounted")]
    Volume { volume: String, source: NotMounted },
    #[error("volume {0:?} has the volumeMode Block: containers have it by volumeDevices")]
    IsDevice(String),
    #[error("volume {0:?} has the volumeMode Filesystem: containers have it by volumeMounts")]
    IsFileSystem(String),
    #[error("subPathExpr {expression:?}: the container has no variable {name:?}")]
    NoVariable { expression: String, name: String },
    #[error(
        "subPathExpr {expression:?} becomes {path:?}, which must be a relative path without '..'"
    )]
    Leaves { expression: String, path: String },
}

/// Where a container's mounts come from.
pub(crate) struct Sources<'a> {
    pub(crate) facts: Facts<'a>,
    pub(crate) volumes: &'a Volumes,
    pub(crate) objects: &'a Objects,
    /// The ids of image volumes' images, by reference.
    pub(crate) images: &'a BTreeMap<String, String>,
    /// Volumes that the VM has as disks.
    pub(crate) disks: &'a [PathVolume],
}

impl Sources<'_> {
    /// The mounts of `container`, whose own variables are `vars`.
    pub(crate) fn mounts(
        &self,
        container: &Container,
        vars: &Vars,
    ) -> Result<Vec<MountSpec>, MountError> {
        let volumes = &self.facts.manifest.spec.volumes;
        let pairs = container.volume_mounts.iter().filter_map(|mount| {
            let volume = volumes.iter().find(|volume| volume.name == mount.name)?;
            Some((mount, volume))
        });
        pairs
            .map(|(mount, volume)| self.one(mount, volume, vars))
            .collect()
    }

    /// The block devices of `container`.
    pub(crate) fn devices(&self, container: &Container) -> Result<Vec<DeviceSpec>, MountError> {
        let devices = container.volume_devices.iter().map(|device| {
            let name = &device.name;
            match self.disk(name) {
                Some(disk) if disk.shown_as == ShownAs::Device => Ok(DeviceSpec {
                    of: DeviceOf::Volume,
                    path: name.clone(),
                    destination: device.device_path.clone(),
                    read_only: disk.read_only,
                }),
                _ => Err(MountError::IsFileSystem(name.clone())),
            }
        });
        devices.collect()
    }

    fn disk(&self, name: &str) -> Option<&BlockVolumeSpec> {
        let mut disks = self.disks.iter().map(|disk| &disk.volume);
        disks.find(|disk| disk.name == name)
    }

    fn one(
        &self,
        mount: &VolumeMount,
        volume: &Volume,
        vars: &Vars,
    ) -> Result<MountSpec, MountError> {
        if let Some(disk) = self.disk(&volume.name) {
            if disk.shown_as == ShownAs::Device {
                return Err(MountError::IsDevice(volume.name.clone()));
            }
            return Ok(MountSpec {
                source: MountSource::Volume(volume.name.clone()),
                sub_path: sub_path(mount, vars)?,
                destination: mount.mount_path.clone(),
                read_only: mount.read_only || disk.read_only,
            });
        }
        let on_host = self.volumes.on_host(volume, &self.facts, self.objects);
        let on_host = on_host.map_err(|source| MountError::Volume {
            volume: volume.name.clone(),
            source,
        })?;
        let mut read_only = mount.read_only;
        let source = match (on_host, &volume.image) {
            (Some(host), _) => {
                read_only |= host.read_only;
                let follows = mount.mount_propagation == Some(MountPropagation::HostToContainer);
                MountSource::Host(HostMount {
                    path: host.path,
                    host_to_container: follows,
                    recursive_read_only: is_recursive(mount) || volume.projections().is_some(),
                    id_mapped: plan::has_user_namespace(self.facts.manifest),
                    within: host.within,
                })
            }
            (None, Some(image)) => {
                let id = self.images.get(&image.reference);
                MountSource::Image(id.unwrap_or(&image.reference).clone())
            }
            (None, None) => MountSource::Volume(volume.name.clone()),
        };
        Ok(MountSpec {
            source,
            sub_path: sub_path(mount, vars)?,
            destination: mount.mount_path.clone(),
            read_only,
        })
    }
}

/// All that is mounted below is read-only, too.
fn is_recursive(mount: &VolumeMount) -> bool {
    matches!(
        mount.recursive_read_only,
        Some(RecursiveReadOnly::Enabled | RecursiveReadOnly::IfPossible)
    )
}

fn sub_path(mount: &VolumeMount, vars: &Vars) -> Result<String, MountError> {
    let expression = &mount.sub_path_expr;
    if expression.is_empty() {
        return Ok(mount.sub_path.clone());
    }
    let missing = RefCell::new(None);
    let path = expand(expression, |name| {
        let value = vars.get(name);
        if value.is_none() {
            missing.replace(Some(name.to_owned()));
        }
        value
    });
    if let Some(name) = missing.into_inner() {
        return Err(MountError::NoVariable {
            expression: expression.clone(),
            name,
        });
    }
    if !is_sub_path(&path) {
        return Err(MountError::Leaves {
            expression: expression.clone(),
            path,
        });
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(expression: &str) -> Result<String, String> {
        let mount: VolumeMount =
            serde_json::from_value(serde_json::json!({"subPathExpr": expression})).unwrap();
        let mut vars = Vars::default();
        vars.set("NAME", "web".into());
        vars.set("UP", "..".into());
        vars.set("ROOT", "/etc".into());
        sub_path(&mount, &vars).map_err(|error| error.to_string())
    }

    #[test]
    fn expressions_stay_in_their_volume() {
        assert_eq!(expanded("logs/$(NAME)").unwrap(), "logs/web");
        assert_eq!(expanded("$$(NAME)").unwrap(), "$(NAME)");
        for (expression, why) in [
            ("$(UP)/x", "without '..'"),
            ("$(ROOT)", "without '..'"),
            ("a/$(NONE)", "no variable \"NONE\""),
        ] {
            let error = expanded(expression).unwrap_err();
            assert!(error.contains(why), "{expression}: {error}");
        }
    }
}
