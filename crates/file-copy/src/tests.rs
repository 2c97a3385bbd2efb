//! Trees through both ends, and senders that mean harm.

use crate::{CopyError, Links, Receiver, send};
use guest_api::proto::copy_entry::Kind;
use guest_api::proto::copy_item::Kind as Item;
use guest_api::proto::{CopyEntry, CopyItem};
use proptest::prelude::*;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use tempfile::TempDir;

/// Copies `from`; what was left out.
fn copy(from: &Path, to: &Path, name: Option<&str>, links: Links) -> Vec<String> {
    let mut receiver = Receiver::new(to, name.map(OsStr::new), links).unwrap();
    let mut left_out = Vec::new();
    send(from, &mut |item| {
        left_out.extend(receiver.take(item).unwrap());
        Ok(())
    })
    .unwrap();
    receiver.finish().unwrap();
    left_out
}

fn item(kind: Item) -> CopyItem {
    CopyItem { kind: Some(kind) }
}

fn entry(kind: Kind, path: &[&str]) -> CopyItem {
    item(Item::Entry(CopyEntry {
        kind: kind.into(),
        path: path.iter().map(|name| name.as_bytes().to_vec()).collect(),
        mode: 0o644,
        target: b"/etc".to_vec(),
        modified_ns: 1,
    }))
}

/// Nothing but `names` lies in `dir`.
fn holds(dir: &Path, names: &[&str]) {
    let entries = fs::read_dir(dir).unwrap();
    let mut found: Vec<_> = entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    assert_eq!(found, names);
}

#[test]
fn tree_comes_out_as_it_went_in() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("a/b")).unwrap();
    let bytes: Vec<u8> = (0..300_000u32).map(|n| n.to_le_bytes()[1]).collect();
    fs::write(tree.join("a/b/data"), &bytes).unwrap();
    fs::write(tree.join("empty"), "").unwrap();
    fs::set_permissions(tree.join("empty"), fs::Permissions::from_mode(0o4751)).unwrap();
    symlink("../empty", tree.join("a/link")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        tree.join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();

    // A new name, then into the directory that it is by then.
    let to = dir.path().join("copy");
    for at in [to.clone(), to.join("tree")] {
        let left_out = copy(&tree, &to, Some("tree"), Links::Keep);
        assert_eq!(left_out, ["pipe: is neither file, directory nor link"]);
        assert_eq!(fs::read(at.join("a/b/data")).unwrap(), bytes);
        assert_eq!(
            fs::read_link(at.join("a/link")).unwrap(),
            Path::new("../empty")
        );
        let (old, new) = (tree.join("empty"), at.join("empty"));
        let (old, new) = (old.metadata().unwrap(), new.metadata().unwrap());
        assert_eq!(new.mode() & 0o7777, 0o751);
        assert_eq!(new.modified().unwrap(), old.modified().unwrap());
    }
    let left_out = copy(&tree, &to, None, Links::LeaveOut);
    assert_eq!(left_out.len(), 2, "{left_out:?}");
    assert!(
        left_out
            .iter()
            .any(|l| l == "a/link: is a link to ../empty")
    );
}

#[test]
fn single_file_gets_the_name_or_goes_into_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "content").unwrap();
    let to = dir.path().join("new");
    copy(&file, &to, Some("file"), Links::Keep);
    assert_eq!(fs::read(&to).unwrap(), b"content");
    // Over what is there.
    fs::write(&file, "more").unwrap();
    copy(&file, &to, Some("file"), Links::Keep);
    assert_eq!(fs::read(&to).unwrap(), b"more");
    fs::create_dir(dir.path().join("d")).unwrap();
    copy(&file, &dir.path().join("d"), Some("file"), Links::Keep);
    assert_eq!(fs::read(dir.path().join("d/file")).unwrap(), b"more");

    let slash = dir.path().join("none/");
    for (path, name) in [(slash.as_path(), Some("file")), (&to, None)] {
        let refused = Receiver::new(path, name.map(OsStr::new), Links::Keep);
        assert!(
            matches!(refused, Err(CopyError::NoDirectory(_))),
            "{path:?}"
        );
    }
    let missing = send(&dir.path().join("missing"), &mut |_| Ok(()));
    assert!(missing.unwrap_err().to_string().contains("missing"));
}

/// A destination with traps: a link to a directory outside, and one to a file.
fn traps() -> (TempDir, std::path::PathBuf, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (outside, to) = (dir.path().join("outside"), dir.path().join("to"));
    fs::create_dir(&outside).unwrap();
    fs::create_dir(&to).unwrap();
    fs::write(outside.join("file"), "precious").unwrap();
    symlink(&outside, to.join("dir")).unwrap();
    symlink(outside.join("file"), to.join("link")).unwrap();
    (dir, outside, to)
}

#[test]
fn hostile_sender_stays_in_the_destination() {
    let (_dir, outside, to) = traps();
    let wrong: &[&[CopyItem]] = &[
        &[entry(Kind::File, &["..", "outside", "new"])],
        &[entry(Kind::File, &["a/../../outside/new"])],
        &[entry(Kind::File, &["/etc/new"])],
        &[entry(Kind::File, &["."])],
        &[entry(Kind::File, &[""])],
        &[entry(Kind::File, &["a\0b"])],
        &[entry(Kind::File, &["dir", "new"])],
        &[entry(Kind::Directory, &["dir"])],
        &[entry(Kind::Directory, &["dir", "new"])],
        &[entry(Kind::File, &["missing", "new"])],
        // A link of its own, then through it.
        &[entry(Kind::Link, &["l"]), entry(Kind::File, &["l", "new"])],
        &[entry(Kind::Unspecified, &["x"])],
        &[entry(Kind::File, &[])],
        &[entry(Kind::File, &["x"; 1000])],
        &[item(Item::Data(vec![1]))],
        &[entry(Kind::Directory, &["d"]), item(Item::Data(vec![1]))],
        &[entry(Kind::File, &["f"]), item(Item::Data(vec![1; 70_000]))],
        &[item(Item::End(true)), entry(Kind::File, &["f"])],
        &[CopyItem { kind: None }],
    ];
    for items in wrong {
        for links in [Links::Keep, Links::LeaveOut] {
            let mut receiver = Receiver::new(&to, None, links).unwrap();
            let taken = items
                .iter()
                .try_for_each(|i| receiver.take(i.clone()).map(drop));
            assert!(taken.is_err(), "{items:?}");
            drop(receiver);
            holds(&outside, &["file"]);
        }
    }
    // A file takes a link's place, and what it led to stays.
    let mut receiver = Receiver::new(&to, None, Links::LeaveOut).unwrap();
    receiver.take(entry(Kind::File, &["link"])).unwrap();
    receiver.take(item(Item::Data(b"new".to_vec()))).unwrap();
    receiver.take(item(Item::End(true))).unwrap();
    receiver.finish().unwrap();
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"precious");
    assert!(to.join("link").symlink_metadata().unwrap().is_file());
}

#[test]
fn what_was_cut_off_leaves_no_half_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut receiver = Receiver::new(dir.path(), None, Links::Keep).unwrap();
    for item in [
        entry(Kind::File, &["whole"]),
        entry(Kind::File, &["half"]),
        item(Item::Data(b"abc".to_vec())),
    ] {
        receiver.take(item).unwrap();
    }
    assert!(matches!(receiver.finish(), Err(CopyError::CutOff)));
    holds(dir.path(), &["whole"]);
}

#[test]
fn what_is_too_deep_is_left_out_and_told_of() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("x/".repeat(200));
    fs::create_dir_all(deep).unwrap();
    let to = dir.path().join("copy");
    let left_out = copy(&dir.path().join("x"), &to, Some("x"), Links::Keep);
    assert!(
        left_out[0].contains("deep") && left_out.len() == 1,
        "{left_out:?}"
    );
}

proptest! {
    #[test]
    fn any_path_stays_inside_or_is_refused(
        path in prop::collection::vec(
            prop::sample::select(vec!["..", ".", "", "a", "dir", "link", "a/b", "..\0"]), 0..4),
        kind in 0i32..4,
    ) {
        let (_dir, outside, to) = traps();
        let mut receiver = Receiver::new(&to, None, Links::Keep).unwrap();
        let mut entry = entry(Kind::File, &path);
        if let Some(Item::Entry(entry)) = &mut entry.kind {
            entry.kind = kind;
        }
        let _ = receiver.take(entry);
        let _ = receiver.take(item(Item::Data(b"x".to_vec())));
        let _ = receiver.take(item(Item::End(true)));
        holds(&outside, &["file"]);
        prop_assert_eq!(fs::read(outside.join("file")).unwrap(), b"precious");
    }
}
