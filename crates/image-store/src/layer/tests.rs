//! Layers applied to an image: what is made of them, and what is refused.

use std::io::Write;

use erofs_writer::{EntryKind, Limits, Options};
use proptest::prelude::*;

use super::*;

/// A header with its name as given, which the `tar` crate would refuse.
fn header(name: &[u8], type_flag: u8, link: &[u8], size: u64) -> [u8; 512] {
    let mut header = ::tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(size);
    header.set_mtime(0);
    header.as_mut_bytes()[..name.len()].copy_from_slice(name);
    header.as_mut_bytes()[156] = type_flag;
    header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link);
    header.set_cksum();
    *header.as_bytes()
}

/// An archive of members: name, type, link target, content.
fn archive(members: &[(&str, u8, &str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, type_flag, link, content) in members {
        bytes.extend(header(
            name.as_bytes(),
            *type_flag,
            link.as_bytes(),
            content.len() as u64,
        ));
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.extend([0; 1024]);
    bytes
}

fn builder() -> Builder {
    let limits = Limits {
        max_data_bytes: 1 << 20,
        max_inodes: 1000,
        max_metadata_bytes: 1 << 20,
    };
    Builder::new(
        tempfile::tempfile().unwrap(),
        &Options {
            uuid: [0; 16],
            limits,
        },
    )
}

fn apply_all(layers: &[Vec<u8>]) -> Result<Builder, LayerError> {
    let mut builder = builder();
    let mut members_left = 1000;
    for layer in layers {
        apply(&mut builder, &layer[..], &mut members_left, 1000)?;
    }
    Ok(builder)
}

fn kind(builder: &Builder, path: &str) -> Option<EntryKind> {
    let names: Vec<_> = path.split('/').map(str::as_bytes).collect();
    builder.kind(&names).unwrap()
}

fn refusal(members: &[(&str, u8, &str, &[u8])]) -> String {
    let error = apply_all(&[archive(members)]).err().expect("refused");
    let mut text = error.to_string();
    let mut cause: &dyn std::error::Error = &error;
    while let Some(next) = cause.source() {
        text += &format!(": {next}");
        cause = next;
    }
    text
}

#[test]
fn members_of_all_kinds_are_made() {
    let builder = apply_all(&[archive(&[
        ("./", b'5', "", b""),
        ("bin/", b'5', "", b""),
        ("bin/busybox", b'0', "", b"\x7fELF"),
        ("bin/sh", b'1', "bin/busybox", b""),
        ("bin/ash", b'2', "/bin/busybox", b""),
        ("dev/null", b'3', "", b""),
        ("dev/sda", b'4', "", b""),
        ("run/fifo", b'6', "", b""),
        ("/abs/file", b'0', "", b"x"),
        ("old-dir/", 0, "", b""),
        ("contiguous", b'7', "", b"x"),
    ])])
    .unwrap();
    for (path, expected) in [
        ("bin/busybox", EntryKind::File),
        ("bin/sh", EntryKind::File),
        ("bin/ash", EntryKind::Symlink),
        ("dev/null", EntryKind::CharDevice),
        ("dev/sda", EntryKind::BlockDevice),
        ("run/fifo", EntryKind::Fifo),
        ("abs/file", EntryKind::File),
        ("old-dir", EntryKind::Directory),
        ("contiguous", EntryKind::File),
    ] {
        assert_eq!(kind(&builder, path), Some(expected), "{path}");
    }
}

#[test]
fn whiteouts_act_on_the_layers_below() {
    let lower = archive(&[
        ("a/x", b'0', "", b"1"),
        ("a/y", b'0', "", b"1"),
        ("b/x", b'0', "", b"1"),
        ("c/x", b'0', "", b"1"),
    ]);
    let upper = archive(&[
        ("a/.wh.x", b'0', "", b""),
        ("b/new", b'0', "", b"2"),
        ("b/.wh..wh..opq", b'0', "", b""),
        (".wh.c", b'0', "", b""),
        ("c/new", b'0', "", b"2"),
        (".wh..wh.plnk/1", b'0', "", b"aufs"),
    ]);
    let builder = apply_all(&[lower, upper]).unwrap();
    for gone in [
        "a/x",
        "b/x",
        "c/x",
        "a/.wh.x",
        "b/.wh..wh..opq",
        ".wh..wh.plnk",
    ] {
        assert_eq!(kind(&builder, gone), None, "{gone}");
    }
    for there in ["a/y", "b/new", "c/new"] {
        assert_eq!(kind(&builder, there), Some(EntryKind::File), "{there}");
    }
}

#[test]
fn paths_out_of_the_image_are_refused_by_name() {
    let text = refusal(&[("ok", b'0', "", b""), ("../../etc/passwd", b'0', "", b"x")]);
    assert!(
        text.contains("../../etc/passwd") && text.contains("out of the image"),
        "{text}"
    );
    let text = refusal(&[("a", b'1', "../../etc/shadow", b"")]);
    assert!(
        text.contains("../../etc/shadow") && text.contains("out of the image"),
        "{text}"
    );
    let text = refusal(&[("a", b'1', "/etc/shadow", b"")]);
    assert!(text.contains("/etc/shadow does not exist"), "{text}");
    let text = refusal(&[("d/.wh...", b'0', "", b"")]);
    assert!(text.contains("whiteout for no file"), "{text}");
}

#[test]
fn link_loops_and_links_to_nothing_are_refused() {
    let text = refusal(&[("a", b'1', "b", b""), ("b", b'1', "a", b"")]);
    assert!(text.contains("/b does not exist"), "{text}");
    let text = refusal(&[
        ("a", b'2', "b", b""),
        ("b", b'2', "a", b""),
        ("a/x", b'0', "", b""),
    ]);
    assert!(text.contains("too many symbolic links"), "{text}");
    let text = refusal(&[("d/", b'5', "", b""), ("l", b'1', "d", b"")]);
    assert!(text.contains("is a directory"), "{text}");
}

#[test]
fn writes_through_links_stay_in_the_image() {
    let builder = apply_all(&[archive(&[
        ("out", b'2', "/../../tmp", b""),
        ("out/file", b'0', "", b"x"),
    ])])
    .unwrap();
    assert_eq!(kind(&builder, "tmp/file"), Some(EntryKind::File));
}

#[test]
fn unknown_types_and_broken_archives_are_refused() {
    assert!(refusal(&[("v", b'V', "", b"")]).contains("type 'V'"));
    let good = archive(&[("a", b'0', "", &[7; 700])]);
    let refused = |bytes: Vec<u8>| match apply_all(&[bytes]) {
        Err(LayerError::Tar { source, .. }) => source,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("accepted"),
    };
    assert!(matches!(refused(good[..600].to_vec()), TarError::Truncated));
    assert!(matches!(refused(good[..100].to_vec()), TarError::Truncated));
    let mut flipped = good.clone();
    flipped[0] ^= 1;
    assert!(matches!(refused(flipped), TarError::Checksum));
    let trailing = [&good[..], &[1]].concat();
    assert!(matches!(refused(trailing), TarError::TrailingData));
    // Not refused: no end mark, and nothing at all.
    assert!(apply_all(&[good[..512 + 1024].to_vec(), Vec::new()]).is_ok());
}

#[test]
fn limits_hold() {
    assert!(refusal(&[("a", b'0', "", &vec![1; (1 << 20) + 1])]).contains("limit of 1048576"));
    let mut members_left = 2;
    let three = archive(&[
        ("a", b'0', "", b""),
        ("a", b'0', "", b""),
        ("a", b'0', "", b""),
    ]);
    let error = apply(&mut builder(), &three[..], &mut members_left, 2).unwrap_err();
    assert!(
        matches!(error, LayerError::TooManyMembers { limit: 2 }),
        "{error}"
    );
    let long_name = [b'n'; 100];
    let long_name = std::str::from_utf8(&long_name).unwrap();
    let path = ["d"; 40].join("/");
    assert!(
        apply_all(&[archive(&[
            (long_name, b'0', "", b""),
            (&path, b'5', "", b"")
        ])])
        .is_ok()
    );
}

#[test]
fn trusted_and_foreign_attributes_are_left_out() {
    let member = |name: &str| Member {
        path: b"a".to_vec(),
        link: Vec::new(),
        kind: MemberKind::File,
        mode: 0o104_755,
        uid: 1,
        gid: 2,
        mtime: (-5, 7),
        device: (0, 0),
        xattrs: vec![(name.as_bytes().to_vec(), b"v".to_vec())],
        size: 0,
        sparse: None,
    };
    assert!(
        attributes(&member("trusted.overlay.opaque"))
            .unwrap()
            .xattrs
            .is_empty()
    );
    assert!(
        attributes(&member("com.apple.x"))
            .unwrap()
            .xattrs
            .is_empty()
    );
    let kept = attributes(&member("user.x")).unwrap();
    assert_eq!(kept.xattrs.len(), 1);
    assert_eq!(
        (kept.permissions, kept.mtime),
        (0o4755, Timestamp::default())
    );
    let huge = Member {
        uid: 1 << 32,
        ..member("user.x")
    };
    assert!(matches!(attributes(&huge), Err(LayerError::Owner { .. })));
}

fn random_members() -> impl Strategy<Value = Vec<(String, u8, String, Vec<u8>)>> {
    let name = "(/|\\./)?([ab]|\\.\\.|\\.wh\\.[ab]|\\.wh\\.\\.wh\\.\\.opq)(/[abc]){0,3}/?";
    let kind = proptest::sample::select(&b"0123456\0xgLKSV"[..]);
    let content = proptest::collection::vec(any::<u8>(), 0..600);
    proptest::collection::vec(
        (name, kind, "(/|\\.\\./)?[abc](/[abc]){0,2}", content),
        0..30,
    )
}

proptest! {
    #[test]
    fn random_archives_are_applied_or_refused(layers in proptest::collection::vec(random_members(), 1..3)) {
        let layers: Vec<_> = layers
            .iter()
            .map(|members| {
                let members: Vec<_> =
                    members.iter().map(|(n, k, l, c)| (n.as_str(), *k, l.as_str(), &c[..])).collect();
                archive(&members)
            })
            .collect();
        if let Ok(builder) = apply_all(&layers) {
            builder.finish().unwrap();
        }
    }

    #[test]
    fn mutated_archives_are_applied_or_refused(
        members in random_members(),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..8),
        cut in any::<proptest::sample::Index>(),
    ) {
        let members: Vec<_> =
            members.iter().map(|(n, k, l, c)| (n.as_str(), *k, l.as_str(), &c[..])).collect();
        let mut bytes = archive(&members);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
            // With the checksum right again, the change gets further.
            let start = at / 512 * 512;
            if let Some(block) = bytes.get_mut(start..start + 512) {
                let mut header = ::tar::Header::new_old();
                header.as_mut_bytes().copy_from_slice(block);
                header.set_cksum();
                block.copy_from_slice(header.as_bytes());
            }
        }
        if cut.index(4) == 0 {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(builder) = apply_all(&[bytes]) {
            builder.finish().unwrap();
        }
    }
}

#[test]
fn shown_paths_are_escaped_and_cut() {
    assert_eq!(show(b"a\n\xff"), "a\\n\\xff");
    assert!(show(&[b'x'; 5000]).len() < 450);
    let mut sink = Vec::new();
    write!(sink, "{}", show(b"x")).unwrap();
    assert_eq!(sink, b"x");
}
