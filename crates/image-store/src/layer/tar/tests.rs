//! Archives by another writer, the `tar` crate, read back.

use std::io::Cursor;

use super::*;

fn read_all(bytes: &[u8]) -> Result<Vec<(Member, Vec<u8>)>, TarError> {
    let mut reader = TarReader::new(bytes);
    let mut members = Vec::new();
    while let Some(member) = reader.next()? {
        let mut content = Vec::new();
        loop {
            let part = reader.fill_data()?.to_vec();
            if part.is_empty() {
                break;
            }
            reader.consume(part.len());
            content.extend(part);
        }
        members.push((member, content));
    }
    reader.finish()?;
    Ok(members)
}

fn header(size: u64) -> ::tar::Header {
    let mut header = ::tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o640);
    header.set_uid(5);
    header.set_gid(6);
    header.set_mtime(1_700_000_000);
    header
}

#[test]
fn gnu_long_names_and_links_are_put_together() {
    let long = format!("{}/file", ["directory"; 30].join("/"));
    let mut builder = ::tar::Builder::new(Vec::new());
    builder
        .append_data(&mut header(5), &long, &b"hello"[..])
        .unwrap();
    let mut link = header(0);
    link.set_entry_type(::tar::EntryType::Symlink);
    builder.append_link(&mut link, "link", &long).unwrap();
    let members = read_all(&builder.into_inner().unwrap()).unwrap();
    assert_eq!(members[0].0.path, long.as_bytes());
    assert_eq!(members[0].1, b"hello");
    assert_eq!(
        (members[0].0.mode, members[0].0.uid, members[0].0.gid),
        (0o640, 5, 6)
    );
    assert_eq!(members[0].0.mtime, (1_700_000_000, 0));
    assert_eq!(members[1].0.kind, MemberKind::Symlink);
    assert_eq!(members[1].0.link, long.as_bytes());
}

#[test]
fn pax_records_go_before_header_fields() {
    let mut builder = ::tar::Builder::new(Vec::new());
    let records: [(&str, &[u8]); 6] = [
        ("path", b"from/pax"),
        ("uid", b"3000000"),
        ("gid", b"4294967294"),
        ("mtime", b"12.5"),
        ("SCHILY.xattr.user.k", b"v\0w"),
        ("comment", b"nothing"),
    ];
    builder.append_pax_extensions(records).unwrap();
    builder
        .append_data(&mut header(3), "short", &b"abc"[..])
        .unwrap();
    builder
        .append_data(&mut header(1), "next", &b"x"[..])
        .unwrap();
    let members = read_all(&builder.into_inner().unwrap()).unwrap();
    let first = &members[0].0;
    assert_eq!(first.path, b"from/pax");
    assert_eq!((first.uid, first.gid), (3_000_000, 4_294_967_294));
    assert_eq!(first.mtime, (12, 500_000_000));
    assert_eq!(first.xattrs, [(b"user.k".to_vec(), b"v\0w".to_vec())]);
    // They hold for one member only.
    assert_eq!(members[1].0.path, b"next");
    assert_eq!(members[1].0.uid, 5);
}

#[test]
fn pax_size_is_the_size() {
    let mut builder = ::tar::Builder::new(Vec::new());
    let records: [(&str, &[u8]); 1] = [("size", b"700")];
    builder.append_pax_extensions(records).unwrap();
    let mut wrong = header(0);
    wrong.set_path("a").unwrap();
    wrong.set_cksum();
    let mut bytes = builder.into_inner().unwrap();
    bytes.truncate(bytes.len() - 1024);
    bytes.extend_from_slice(wrong.as_bytes());
    bytes.extend([7; 700]);
    bytes.resize(bytes.len().next_multiple_of(512) + 1024, 0);
    let members = read_all(&bytes).unwrap();
    assert_eq!((members.len(), members[0].1.len()), (1, 700));
}

#[test]
fn special_headers_have_a_limit() {
    let mut long = header((1 << 20) + 1);
    long.set_entry_type(::tar::EntryType::XHeader);
    long.set_cksum();
    let error = read_all(long.as_bytes()).unwrap_err();
    assert!(
        matches!(error, TarError::SpecialTooLong { len: 1_048_577, .. }),
        "{error}"
    );
}

#[test]
fn paths_linux_cannot_use_are_refused() {
    let mut builder = ::tar::Builder::new(Vec::new());
    let path = vec![b'x'; 4097];
    builder
        .append_pax_extensions([("path", &path[..])])
        .unwrap();
    builder
        .append_data(&mut header(0), "short", Cursor::new([]))
        .unwrap();
    assert!(matches!(
        read_all(&builder.into_inner().unwrap()),
        Err(TarError::Path)
    ));
}
