//! Disk bays: an extent of a bay's device becomes a partition, and an image's
//! partition a mount that all containers of the image share.

use crate::error::{AgentError, Doing};
use crate::fs_mount;
use crate::layout;
use crate::sys::block;
use guest_api::proto::DiskExtent;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags as Attr, UnmountFlags, unmount};
use std::collections::{BTreeMap, BTreeSet};

/// A checked [`DiskExtent`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Extent {
    device: String,
    offset: i64,
    length: i64,
}

impl Extent {
    /// Checks an extent of a request; `field` is where it stands there.
    pub(crate) fn check(extent: &DiskExtent, field: &str) -> Result<Self, AgentError> {
        let bad = |part: &str, problem: &str| {
            Err(AgentError::invalid(format!("{field}.{part}"), problem))
        };
        let DiskExtent {
            device,
            offset,
            length,
        } = extent;
        if !matches!(device.as_bytes(), [b'v', b'd', b'a'..=b'z']) {
            return bad("device", "a bay's device is named vda or vdb");
        }
        if offset % 4096 != 0 {
            return bad("offset", "the offset must be a multiple of 4096");
        }
        if length % 512 != 0 || *length == 0 {
            return bad("length", "the length must be a multiple of 512, not 0");
        }
        let (Ok(offset), Ok(length)) = (i64::try_from(*offset), i64::try_from(*length)) else {
            return bad("length", "the extent lies past what a disk can address");
        };
        if offset.checked_add(length).is_none() {
            return bad("length", "the extent lies past what a disk can address");
        }
        Ok(Self {
            device: device.clone(),
            offset,
            length,
        })
    }
}

/// A partition made of an extent.
#[derive(Debug)]
pub(crate) struct Partition {
    device: String,
    number: u8,
}

impl Partition {
    /// Its block device.
    pub(crate) fn path(&self) -> String {
        format!("/dev/{}{}", self.device, self.number)
    }
}

impl Extent {
    /// Bytes.
    pub(crate) fn length(&self) -> u64 {
        self.length.unsigned_abs()
    }

    /// The same with another length.
    pub(crate) fn resized(&self, length: u64) -> Result<Self, AgentError> {
        let extent = DiskExtent {
            device: self.device.clone(),
            offset: self.offset.unsigned_abs(),
            length,
        };
        Self::check(&extent, "extent")
    }
}

/// The partitions in use, and the images mounted from them.
#[derive(Debug, Default)]
pub(crate) struct Disks {
    numbers: BTreeSet<(String, u8)>,
    images: BTreeMap<Extent, Image>,
}

#[derive(Debug)]
struct Image {
    partition: Partition,
    mounted: bool,
    users: u32,
}

impl Image {
    fn mount_point(&self) -> String {
        let Partition { device, number } = &self.partition;
        format!("{}/{device}{number}", layout::IMAGES)
    }
}

fn open_disk(device: &str) -> Result<std::os::fd::OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(format!("/dev/{device}"), flags, Mode::empty())
}

impl Disks {
    /// Makes a partition of `extent`.
    pub(crate) fn add_partition(&mut self, extent: &Extent) -> Result<Partition, AgentError> {
        let device = &extent.device;
        let disk = open_disk(device).map_err(|source| match source {
            Errno::NOENT => AgentError::NotFound {
                what: format!("the disk {device}"),
                remedy: "give the VM its disk bays",
            },
            source => AgentError::System {
                doing: format!("opening the disk {device}"),
                source,
                remedy: "",
            },
        })?;
        let number = (1..=u8::MAX)
            .find(|n| !self.numbers.contains(&(device.clone(), *n)))
            .ok_or_else(|| AgentError::Exhausted {
                problem: format!("the disk {device} has 255 partitions in use"),
                remedy: "remove containers, or spread them over several pods",
            })?;
        block::add_partition(&disk, number, extent.offset, extent.length).map_err(|source| {
            AgentError::System {
                doing: format!(
                    "making a partition of {} bytes at {} of {device}",
                    extent.length, extent.offset
                ),
                source,
                remedy: match source {
                    Errno::INVAL => "the extent must lie inside the disk",
                    Errno::BUSY => "the extent overlaps another one that is in use",
                    _ => "",
                },
            }
        })?;
        self.numbers.insert((device.clone(), number));
        Ok(Partition {
            device: device.clone(),
            number,
        })
    }

    /// Has a partition, which may be in use, cover all of `extent`.
    pub(crate) fn resize_partition(
        &self,
        partition: &Partition,
        extent: &Extent,
    ) -> Result<(), AgentError> {
        open_disk(&partition.device)
            .and_then(|disk| {
                block::resize_partition(disk, partition.number, extent.offset, extent.length)
            })
            .doing(|| format!("resizing {} to {} bytes", partition.path(), extent.length))
    }

    /// Deletes a partition that is not mounted any more; EBUSY for a moment
    /// after it was.
    pub(crate) fn delete_partition(&mut self, partition: &Partition) -> Result<(), Errno> {
        let disk = open_disk(&partition.device)?;
        match block::delete_partition(&disk, partition.number) {
            Ok(()) | Err(Errno::NXIO) => {}
            Err(e) => return Err(e),
        }
        self.numbers
            .remove(&(partition.device.clone(), partition.number));
        Ok(())
    }

    /// Mounts the image in `extent`, or counts one more user of it. Returns the
    /// mount point. Each success is to be met by [`Disks::release_image`].
    pub(crate) fn use_image(&mut self, extent: &Extent) -> Result<String, AgentError> {
        if !self.images.contains_key(extent) {
            let partition = self.add_partition(extent)?;
            let image = Image {
                partition,
                mounted: false,
                users: 0,
            };
            self.images.insert(extent.clone(), image);
        }
        let Some(image) = self.images.get_mut(extent) else {
            return Err(Errno::NOENT).doing(|| "finding the image just added".to_owned());
        };
        let mount_point = image.mount_point();
        if !image.mounted {
            if let Err(e) = mount_image(&image.partition.path(), &mount_point) {
                // Without users it is only a partition; nobody else has it open.
                let _ = self.drop_unused_image(extent);
                return Err(e);
            }
            image.mounted = true;
        }
        image.users += 1;
        Ok(mount_point)
    }

    /// One user less. The image stays until [`Disks::drop_unused_image`].
    pub(crate) fn release_image(&mut self, extent: &Extent) {
        if let Some(image) = self.images.get_mut(extent) {
            image.users = image.users.saturating_sub(1);
        }
    }

    /// Unmounts an image without users and deletes its partition. EBUSY while
    /// the kernel is still taking down the mounts of a container that ended.
    pub(crate) fn drop_unused_image(&mut self, extent: &Extent) -> Result<(), Errno> {
        let Some(image) = self.images.get_mut(extent) else {
            return Ok(());
        };
        if image.users > 0 {
            return Ok(());
        }
        if image.mounted {
            unmount(image.mount_point(), UnmountFlags::empty())?;
            image.mounted = false;
        }
        let _ = rustix::fs::rmdir(image.mount_point());
        let partition = Partition {
            device: image.partition.device.clone(),
            number: image.partition.number,
        };
        self.delete_partition(&partition)?;
        self.images.remove(extent);
        Ok(())
    }
}

fn mount_image(source: &str, mount_point: &str) -> Result<(), AgentError> {
    let attributes = Attr::MOUNT_ATTR_RDONLY | Attr::MOUNT_ATTR_NODEV;
    let options = [("source", source), ("ro", "")];
    let mount = fs_mount::new("erofs", &options, attributes).map_err(|e| match e {
        AgentError::System { source: errno, .. } => AgentError::System {
            doing: format!("mounting the image in {source}"),
            source: errno,
            remedy: match errno {
                Errno::INVAL | Errno::UCLEAN => {
                    "the extent holds no sound EROFS file system; pull the image again"
                }
                _ => "",
            },
        },
        other => other,
    })?;
    fs_mount::attach_at(mount, mount_point)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn extent(device: &str, offset: u64, length: u64) -> DiskExtent {
        DiskExtent {
            device: device.to_owned(),
            offset,
            length,
        }
    }

    #[test]
    fn extents_of_both_bays_pass() {
        for device in ["vda", "vdb"] {
            Extent::check(&extent(device, 0, 4096), "image").unwrap();
        }
    }

    #[test]
    fn a_wrong_extent_names_its_field() {
        let cases = [
            (extent("../sda", 0, 4096), "image.device"),
            (extent("", 0, 4096), "image.device"),
            (extent("vda", 512, 4096), "image.offset"),
            (extent("vda", 0, 0), "image.length"),
            (extent("vda", 0, 100), "image.length"),
            (extent("vda", 1 << 63, 4096), "image.length"),
            (extent("vda", (1 << 63) - 4096, 4096), "image.length"),
        ];
        for (extent, field) in cases {
            let error = Extent::check(&extent, "image").unwrap_err().into_wire();
            assert_eq!(error.field, field, "{extent:?}");
        }
    }

    proptest! {
        #[test]
        fn a_checked_extent_ends_within_a_disk(offset: u64, length: u64) {
            let extent = extent("vda", offset & !4095, length & !4095);
            if let Ok(checked) = Extent::check(&extent, "image") {
                prop_assert!(checked.offset >= 0 && checked.length > 0);
                prop_assert!(checked.offset.checked_add(checked.length).is_some());
            }
        }
    }
}
