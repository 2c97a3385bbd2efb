//! What a block volume holds, by its first and last bytes; and a file system for one
//! that is blank. Nothing is ever mounted here.

use crate::spec::FileSystem;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

/// Bytes at either end in which every file system, partition table, volume manager
/// and RAID has its marks.
const ENDS: u64 = 4 << 20;
/// Where an ext superblock has its magic number.
const EXT_MAGIC: (u64, [u8; 2]) = (1024 + 56, [0x53, 0xef]);
/// What an XFS superblock begins with.
const XFS_MAGIC: (u64, [u8; 4]) = (0, *b"XFSB");

/// What was found on a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// Zeroes at both ends.
    Blank,
    /// This file system, by its magic number.
    FileSystem(FileSystem),
    /// Something.
    Other,
}

/// What to do about it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    Mount(FileSystem),
    Make(FileSystem),
}

/// Looks at a volume. Blocks.
pub(super) fn look(file: &File) -> io::Result<Found> {
    if has(file, EXT_MAGIC)? {
        return Ok(Found::FileSystem(FileSystem::Ext4));
    }
    if has(file, XFS_MAGIC)? {
        return Ok(Found::FileSystem(FileSystem::Xfs));
    }
    for (at, length) in ends(file)? {
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, at)?;
        if bytes.iter().any(|byte| *byte != 0) {
            return Ok(Found::Other);
        }
    }
    Ok(Found::Blank)
}

/// What to do with a volume that holds `found` where the file system `wanted` is to
/// be had, and may be made on a blank one.
pub(super) fn decide(
    found: Found,
    wanted: Option<FileSystem>,
    make: bool,
) -> Result<Decision, String> {
    match (found, wanted) {
        (Found::FileSystem(kind), None) => Ok(Decision::Mount(kind)),
        (Found::FileSystem(kind), Some(wanted)) if kind == wanted => Ok(Decision::Mount(kind)),
        (Found::FileSystem(kind), Some(wanted)) => Err(format!(
            "it holds the file system {kind}, not {wanted}; it is not formatted: name {kind}, or wipe it"
        )),
        (Found::Blank, wanted) if make => {
            Ok(Decision::Make(wanted.unwrap_or(FileSystem::Ext4)))
        }
        (Found::Blank, _) => Err("it is blank, and no file system is to be made on it".into()),
        (Found::Other, _) => Err(
            "it is not blank and holds neither ext4 nor XFS; it is not formatted: wipe it (wipefs) if what it holds is of no worth".into(),
        ),
    }
}

/// Makes a file system on a blank volume; if that fails it is blank again. Blocks.
pub(super) fn make(file: &File, kind: FileSystem) -> Result<(), String> {
    let failed = |e: io::Error| format!("its file system could not be made: {e}");
    let stdin = file.try_clone().map_err(failed)?;
    // By its own descriptor: no path can come to mean something else meanwhile.
    let (program, arguments, package): (_, &[&str], _) = match kind {
        FileSystem::Ext4 => (
            "mkfs.ext4",
            &["-q", "-F", "-m", "0", "-E", "root_owner=0:0"],
            "e2fsprogs",
        ),
        FileSystem::Xfs => ("mkfs.xfs", &["-q", "-f"], "xfsprogs"),
    };
    let output = Command::new(program)
        .args(arguments)
        .arg("/proc/self/fd/0")
        .stdin(Stdio::from(stdin))
        .output();
    let message = match output {
        Ok(output) if output.status.success() => return Ok(()),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr);
            format!("{} ({})", text.trim(), output.status)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            format!("it is not installed; install the package {package}")
        }
        Err(e) => e.to_string(),
    };
    let wiped = match wipe(file) {
        Ok(()) => String::new(),
        Err(e) => format!("; what it left could not be wiped: {e}"),
    };
    Err(format!(
        "{program} could not make a file system: {message}{wiped}"
    ))
}

/// Makes a volume blank that was blank before a file system was begun on it, unless
/// one is there.
pub(super) fn wipe_unless_whole(file: &File) -> io::Result<()> {
    match look(file)? {
        Found::Other => wipe(file),
        Found::Blank | Found::FileSystem(_) => Ok(()),
    }
}

fn wipe(file: &File) -> io::Result<()> {
    for (at, length) in ends(file)? {
        file.write_all_at(&vec![0; length], at)?;
    }
    file.sync_data()
}

fn has<const N: usize>(file: &File, (at, magic): (u64, [u8; N])) -> io::Result<bool> {
    let mut bytes = [0; N];
    match file.read_exact_at(&mut bytes, at) {
        Ok(()) => Ok(bytes == magic),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}

/// The parts of a volume that are looked at: offset and length.
fn ends(mut file: &File) -> io::Result<Vec<(u64, usize)>> {
    let size = file.seek(SeekFrom::End(0))?;
    let length = size.min(ENDS);
    let end = size.saturating_sub(ENDS).max(length);
    let pieces = [(0, length), (end, size - end)];
    let fits = pieces.map(|(at, length)| (at, usize::try_from(length).unwrap_or(0)));
    Ok(fits.into_iter().filter(|(_, length)| *length > 0).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(length: u64, marks: &[(u64, &[u8])]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        for (at, bytes) in marks {
            file.write_all_at(bytes, *at).unwrap();
        }
        file
    }

    const SIZE: u64 = 64 << 20;

    #[test]
    fn only_what_is_zero_at_both_ends_is_blank() {
        for length in [1, 512, ENDS, ENDS + 1, 2 * ENDS - 1, 2 * ENDS, SIZE] {
            assert_eq!(look(&file(length, &[])).unwrap(), Found::Blank, "{length}");
            for at in [0, length / 2, length - 1] {
                let far = at >= ENDS && at < length - ENDS;
                let found = look(&file(length, &[(at, &[1])])).unwrap();
                let want = if far { Found::Blank } else { Found::Other };
                assert_eq!(found, want, "{at} of {length}");
            }
        }
        // A GPT's copy, an LVM label, a RAID's superblock near the end.
        for (at, mark) in [
            (SIZE - 512, b"EFI PART".as_slice()),
            (512, b"LABELONE"),
            (SIZE - (64 << 10), &[0xfc, 0x4e, 0x2b, 0xa9]),
        ] {
            assert_eq!(look(&file(SIZE, &[(at, mark)])).unwrap(), Found::Other);
        }
        let ext = look(&file(SIZE, &[(1080, &[0x53, 0xef])])).unwrap();
        assert_eq!(ext, Found::FileSystem(FileSystem::Ext4));
        let xfs = look(&file(SIZE, &[(0, b"XFSB")])).unwrap();
        assert_eq!(xfs, Found::FileSystem(FileSystem::Xfs));
    }

    #[test]
    fn only_a_blank_volume_is_formatted() {
        use FileSystem::{Ext4, Xfs};
        let some = |kind| Found::FileSystem(kind);
        assert_eq!(decide(Found::Blank, None, true), Ok(Decision::Make(Ext4)));
        assert_eq!(
            decide(Found::Blank, Some(Xfs), true),
            Ok(Decision::Make(Xfs))
        );
        for make in [false, true] {
            assert_eq!(decide(some(Xfs), None, make), Ok(Decision::Mount(Xfs)));
            assert_eq!(
                decide(some(Ext4), Some(Ext4), make),
                Ok(Decision::Mount(Ext4))
            );
            assert!(decide(some(Ext4), Some(Xfs), make).is_err());
            for wanted in [None, Some(Ext4), Some(Xfs)] {
                assert!(decide(Found::Other, wanted, make).is_err());
            }
        }
        assert!(decide(Found::Blank, None, false).is_err());
    }

    #[test]
    fn a_file_system_is_made_by_descriptor_and_a_failure_leaves_a_blank_volume() {
        let volume = file(SIZE, &[]);
        make(&volume, FileSystem::Ext4).unwrap();
        let ext = Found::FileSystem(FileSystem::Ext4);
        assert_eq!(look(&volume).unwrap(), ext);
        wipe_unless_whole(&volume).unwrap();
        assert_eq!(look(&volume).unwrap(), ext, "it is whole");
        // Too small for any.
        let small = file(8192, &[]);
        let error = make(&small, FileSystem::Ext4).unwrap_err();
        assert!(error.contains("mkfs.ext4"), "{error}");
        assert_eq!(look(&small).unwrap(), Found::Blank);
    }
}
