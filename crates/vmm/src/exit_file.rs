//! `vm-exit.json`: how the VM ended, for a daemon that was away.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use vm_spec::proto::VmExit;

/// Writes the record so that a reader sees all of it or nothing, also after a
/// crash of the host.
pub(crate) fn write(dir: &Path, exit: &VmExit) -> io::Result<()> {
    let partial = dir.join(format!("{}.new", vm_spec::files::EXIT));
    let mut file = File::create(&partial)?;
    file.write_all(vm_spec::exit_to_json(exit).as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&partial, dir.join(vm_spec::files::EXIT))?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_spec::proto::vm_exit::Reason;

    #[test]
    fn record_replaces_an_old_one_whole() {
        let dir = tempfile::tempdir().unwrap();
        for message in ["a long message of an earlier end", "short"] {
            let exit = VmExit {
                reason: Reason::Killed.into(),
                message: message.into(),
            };
            write(dir.path(), &exit).unwrap();
            let text = std::fs::read_to_string(dir.path().join(vm_spec::files::EXIT)).unwrap();
            assert_eq!(vm_spec::exit_from_json(&text).unwrap(), exit);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
