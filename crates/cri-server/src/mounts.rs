//! Mounts and devices of a container.
//!
//! `selinux_relabel` has no effect: the kubelet sets it on nodes without SELinux,
//! too, and guests have none.

use crate::error::CriError;
use crate::namespaces;
use cri_api::v1::{Device, Mount, MountPropagation};
use sandbox::{DeviceOf, DeviceSpec, HostMount, MountSource, MountSpec, UserNamespace};
use std::path::{Component, Path, PathBuf};

fn field(index: usize, name: &str) -> String {
    format!("config.mounts[{index}].{name}")
}

/// Refuses what is not an absolute path that stays where it says.
pub(crate) fn absolute(field: &str, path: &str) -> Result<(), CriError> {
    let climbs = Path::new(path)
        .components()
        .any(|c| c == Component::ParentDir);
    if !path.starts_with('/') || climbs || path.contains('\0') {
        return Err(CriError::invalid(
            field,
            format!("{path:?} must be an absolute path without '..'"),
        ));
    }
    Ok(())
}

/// Refuses what leads out of the directory it is relative to.
pub(crate) fn relative(field: &str, path: &str) -> Result<(), CriError> {
    let stays = Path::new(path)
        .components()
        .all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    if !stays || path.contains('\0') {
        return Err(CriError::invalid(
            field,
            format!("{path:?} must be a relative path without '..'"),
        ));
    }
    Ok(())
}

/// The mounts of a container whose sandbox has that user namespace.
pub(crate) fn convert(
    mounts: &[Mount],
    users: Option<UserNamespace>,
) -> Result<Vec<MountSpec>, CriError> {
    let numbered = mounts.iter().enumerate();
    numbered
        .map(|(index, mount)| one(index, mount, users))
        .collect()
}

fn one(index: usize, mount: &Mount, users: Option<UserNamespace>) -> Result<MountSpec, CriError> {
    absolute(&field(index, "container_path"), &mount.container_path)?;
    check_options(index, mount)?;
    let id_mapped = id_mapped(index, mount, users)?;
    let propagation = propagation(index, mount)?;
    check_recursive(index, mount, propagation)?;
    let Some(name) = image_name(mount) else {
        // A kubelet gives `image_sub_path` with each mount that has a subPath, though it
        // is in the host's path by then; the contract reads it where there is an image.
        absolute(&field(index, "host_path"), &mount.host_path)?;
        return Ok(MountSpec {
            source: MountSource::Host(HostMount {
                path: PathBuf::from(&mount.host_path),
                host_to_container: propagation == MountPropagation::PropagationHostToContainer,
                recursive_read_only: mount.recursive_read_only,
                id_mapped,
                within: Vec::new(),
            }),
            sub_path: String::new(),
            destination: mount.container_path.clone(),
            read_only: mount.readonly,
        });
    };
    if !mount.host_path.is_empty() {
        let message = "must be empty where an image is mounted";
        return Err(CriError::invalid(field(index, "host_path"), message));
    }
    if !mount.readonly {
        let message = "an image is mounted read-only; set it";
        return Err(CriError::invalid(field(index, "readonly"), message));
    }
    relative(&field(index, "image_sub_path"), &mount.image_sub_path)?;
    Ok(MountSpec {
        source: MountSource::Image(name.to_owned()),
        sub_path: mount.image_sub_path.clone(),
        destination: mount.container_path.clone(),
        read_only: true,
    })
}

/// The image that is mounted: its digest, where that is known, since the name may
/// mean another image by now.
pub(crate) fn image_name(mount: &Mount) -> Option<&str> {
    let image = mount.image.as_ref()?;
    let names = [image.image_ref.as_str(), image.image.as_str()];
    names.into_iter().find(|name| !name.is_empty())
}

fn check_options(index: usize, mount: &Mount) -> Result<(), CriError> {
    if !mount.mount_options.is_empty() {
        let message = format!("{:?}: mount options are not supported", mount.mount_options);
        return Err(CriError::invalid(field(index, "mount_options"), message));
    }
    Ok(())
}

/// Whether the owners of its files are the pod's users, which those of an image
/// always are.
fn id_mapped(index: usize, mount: &Mount, users: Option<UserNamespace>) -> Result<bool, CriError> {
    if mount.uid_mappings.is_empty() && mount.gid_mappings.is_empty() {
        return Ok(false);
    }
    let (uids, gids) = (field(index, "uidMappings"), field(index, "gidMappings"));
    let asked = UserNamespace {
        uids: namespaces::id_range(&uids, &mount.uid_mappings)?,
        gids: namespaces::id_range(&gids, &mount.gid_mappings)?,
    };
    let message = match users {
        None => "needs a pod with a user namespace (hostUsers: false)",
        Some(own) if own != asked => {
            "not the mappings of the pod's user namespace, and no others are possible: give the same"
        }
        Some(_) => return Ok(true),
    };
    Err(CriError::invalid(uids, message))
}

fn propagation(index: usize, mount: &Mount) -> Result<MountPropagation, CriError> {
    let named = MountPropagation::try_from(mount.propagation);
    let message = match named {
        Ok(MountPropagation::PropagationBidirectional) => {
            "PROPAGATION_BIDIRECTIONAL is not possible: a mount made in the pod's VM is its kernel's own and cannot appear on the node; mount on the node, or run the pod with another RuntimeClass".to_owned()
        }
        Ok(known) => return Ok(known),
        Err(_) => format!("{} is no propagation", mount.propagation),
    };
    Err(CriError::invalid(field(index, "propagation"), message))
}

/// What is read-only with all that is mounted below must be read-only and must
/// see no later mount.
fn check_recursive(
    index: usize,
    mount: &Mount,
    propagation: MountPropagation,
) -> Result<(), CriError> {
    if !mount.recursive_read_only {
        return Ok(());
    }
    let wrong = if !mount.readonly {
        "needs readonly"
    } else if propagation != MountPropagation::PropagationPrivate {
        "needs PROPAGATION_PRIVATE"
    } else {
        return Ok(());
    };
    Err(CriError::invalid(
        field(index, "recursive_read_only"),
        wrong,
    ))
}

/// Which of these devices are block devices of the host: their paths, as a kubelet
/// gives them, are links to what a volume's driver has made.
pub(crate) async fn host_blocks(devices: &[Device]) -> Result<Vec<bool>, CriError> {
    let paths: Vec<PathBuf> = devices
        .iter()
        .map(|d| PathBuf::from(&d.host_path))
        .collect();
    let look = move || {
        paths
            .iter()
            .map(|path| sandbox::is_block_device(path))
            .collect()
    };
    let looked = tokio::task::spawn_blocking(look).await;
    looked.map_err(|_| CriError::TaskDied("the devices of a container".into()))
}

/// The devices of a container: block devices of the host, others of the guest.
pub(crate) fn devices(
    devices: &[Device],
    host_blocks: &[bool],
) -> Result<Vec<DeviceSpec>, CriError> {
    let numbered = devices.iter().zip(host_blocks).enumerate();
    numbered
        .map(|(index, (device, host))| self::device(index, device, *host))
        .collect()
}

fn device(index: usize, device: &Device, host_block: bool) -> Result<DeviceSpec, CriError> {
    let field = |name: &str| format!("config.devices[{index}].{name}");
    absolute(&field("host_path"), &device.host_path)?;
    if !host_block && !device.host_path.starts_with("/dev/") {
        let message = format!(
            "{:?} must be a block device of the node, or a device of the guest, below /dev",
            device.host_path
        );
        return Err(CriError::invalid(field("host_path"), message));
    }
    let destination = match device.container_path.as_str() {
        "" => &device.host_path,
        path => path,
    };
    absolute(&field("container_path"), destination)?;
    let letters = &device.permissions;
    if !letters.chars().all(|c| "rwm".contains(c)) {
        let message = format!("{letters:?} must be letters of r, w and m");
        return Err(CriError::invalid(field("permissions"), message));
    }
    Ok(DeviceSpec {
        of: match host_block {
            true => DeviceOf::Host,
            false => DeviceOf::Guest,
        },
        path: device.host_path.clone(),
        destination: destination.to_owned(),
        read_only: !letters.is_empty() && !letters.contains('w'),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use cri_api::v1::{IdMapping, ImageSpec};
    use proptest::prelude::*;

    fn host() -> Mount {
        Mount {
            container_path: "/data".into(),
            host_path: "/srv".into(),
            ..Mount::default()
        }
    }

    fn image(name: &str) -> Option<ImageSpec> {
        Some(ImageSpec {
            image: name.into(),
            ..ImageSpec::default()
        })
    }

    fn refused(mount: Mount) -> String {
        let made = convert(&[host(), mount], None);
        made.unwrap_err().to_string()
    }

    #[test]
    fn host_directories_and_images_are_told_apart() {
        let both = [
            Mount {
                readonly: true,
                propagation: MountPropagation::PropagationHostToContainer.into(),
                ..host()
            },
            Mount {
                container_path: "/v".into(),
                image: image("vol"),
                image_sub_path: "a/b".into(),
                readonly: true,
                ..Mount::default()
            },
        ];
        let got = convert(&both, None).unwrap();
        assert_eq!(
            got[0].source,
            MountSource::Host(HostMount {
                path: "/srv".into(),
                host_to_container: true,
                recursive_read_only: false,
                id_mapped: false,
                within: Vec::new(),
            })
        );
        assert!(got[0].read_only);
        assert_eq!(got[1].source, MountSource::Image("vol".into()));
        assert_eq!(got[1].sub_path, "a/b");
        assert!(got[1].read_only);
    }

    #[test]
    fn regression_sub_path_of_a_host_mount_is_in_its_path_already() {
        let mount = Mount {
            host_path: "/pods/1/volume-subpaths/v/c/0".into(),
            image_sub_path: "a/b".into(),
            ..host()
        };
        let got = convert(std::slice::from_ref(&mount), None).unwrap();
        let MountSource::Host(source) = &got[0].source else {
            panic!("{got:?}");
        };
        assert_eq!(source.path, PathBuf::from(mount.host_path));
        assert_eq!(got[0].sub_path, "");
    }

    #[test]
    fn impossible_mounts_are_refused_by_field() {
        let named = |mount: Mount, name: &str| {
            let error = refused(mount);
            let start = format!("config.mounts[1].{name}:");
            assert!(error.starts_with(&start), "{error}");
        };
        let bad = |change: fn(&mut Mount)| {
            let mut mount = host();
            change(&mut mount);
            mount
        };
        named(bad(|m| m.container_path = "data".into()), "container_path");
        named(
            bad(|m| m.container_path = "/a/../b".into()),
            "container_path",
        );
        named(bad(|m| m.host_path = String::new()), "host_path");
        named(bad(|m| m.image = image("x")), "host_path");
        named(bad(|m| m.propagation = 2), "propagation");
        named(bad(|m| m.propagation = 7), "propagation");
        named(
            bad(|m| m.mount_options = vec!["noexec".into()]),
            "mount_options",
        );
        named(
            bad(|m| m.gid_mappings = vec![IdMapping::default()]),
            "uidMappings",
        );
        named(bad(|m| m.recursive_read_only = true), "recursive_read_only");
        let climbing = bad(|m| {
            m.host_path = String::new();
            m.image = image("x");
            m.image_sub_path = "../x".into();
            m.readonly = true;
        });
        named(climbing, "image_sub_path");
        let writable = bad(|m| {
            m.host_path = String::new();
            m.image = image("x");
        });
        named(writable, "readonly");
    }

    #[test]
    fn ids_are_mapped_as_in_the_pods_user_namespace_only() {
        let mapping = |host_id| IdMapping {
            host_id,
            container_id: 0,
            length: 65536,
        };
        let range = sandbox::IdRange {
            first: 65536,
            count: 65536,
        };
        let users = Some(UserNamespace {
            uids: range,
            gids: range,
        });
        let with = |uid, gid| Mount {
            uid_mappings: vec![mapping(uid)],
            gid_mappings: vec![mapping(gid)],
            ..host()
        };
        let mapped = |mount: Mount, users| match &convert(&[mount], users)?[0].source {
            MountSource::Host(made) => Ok::<bool, CriError>(made.id_mapped),
            other => panic!("{other:?}"),
        };
        assert!(mapped(with(65536, 65536), users).unwrap());
        assert!(!mapped(host(), users).unwrap());
        for (mount, users, word) in [
            (with(65536, 65536), None, "hostUsers"),
            (with(65536, 1), users, "give the same"),
            (with(1, 65536), users, "give the same"),
            (with(0, 65536), users, "host_id 0"),
        ] {
            let error = mapped(mount, users).unwrap_err().to_string();
            assert!(
                error.starts_with("config.mounts[0].uidMappings:"),
                "{error}"
            );
            assert!(error.contains(word), "{error}");
        }
        let half = Mount {
            gid_mappings: Vec::new(),
            ..with(65536, 65536)
        };
        let error = mapped(half, users).unwrap_err().to_string();
        assert!(
            error.starts_with("config.mounts[0].gidMappings:"),
            "{error}"
        );
    }

    #[test]
    fn recursive_read_only_needs_a_private_read_only_mount() {
        let with = |propagation: i32| Mount {
            readonly: true,
            recursive_read_only: true,
            propagation,
            ..host()
        };
        let MountSource::Host(made) = &convert(&[with(0)], None).unwrap()[0].source else {
            panic!("no mount of the host");
        };
        assert!(made.recursive_read_only);
        assert!(refused(with(1)).contains("PROPAGATION_PRIVATE"));
    }

    #[test]
    fn devices_are_the_guests_or_blocks_of_the_host() {
        let of = |host: &str, container: &str, permissions: &str, block: bool| {
            let device = Device {
                host_path: host.into(),
                container_path: container.into(),
                permissions: permissions.into(),
            };
            devices(&[device], &[block])
        };
        let device = |host: &str, container: &str, permissions: &str| {
            of(host, container, permissions, false)
        };
        let got = device("/dev/fuse", "", "r").unwrap();
        assert_eq!(
            (got[0].destination.as_str(), got[0].read_only),
            ("/dev/fuse", true)
        );
        assert!(!device("/dev/fuse", "/dev/f", "rwm").unwrap()[0].read_only);
        for (host, container, permissions) in [
            ("/etc/passwd", "", "r"),
            ("/dev/../etc/passwd", "", "r"),
            ("/dev/fuse", "f", "r"),
            ("/dev/fuse", "", "x"),
        ] {
            assert!(device(host, container, permissions).is_err(), "{host}");
        }
        let block = of("/var/lib/kubelet/x", "/dev/xvda", "r", true).unwrap();
        assert!(block[0].of == DeviceOf::Host && block[0].read_only);
        assert!(of("/var/../x", "/dev/xvda", "r", true).is_err());
    }

    proptest! {
        #[test]
        fn no_accepted_path_climbs(path in "[a./]{0,12}") {
            if relative("p", &path).is_ok() {
                prop_assert!(!path.starts_with('/'));
                prop_assert!(path.split('/').all(|part| part != ".."));
            }
            if absolute("p", &path).is_ok() {
                prop_assert!(path.split('/').all(|part| part != ".."));
            }
        }
    }
}
