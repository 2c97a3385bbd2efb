//! Who a container's process runs as: an image's `User` in the container's own
//! /etc/passwd and /etc/group.

use crate::error::{AgentError, Doing};
use guest_api::proto::User;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::Read;

/// Largest /etc/passwd or /etc/group read, in bytes. These are the image's.
const MAX_DATABASE: u64 = 4 << 20;
/// Most supplementary groups; the kernel takes 65536, but their numbers have to
/// fit into one packet to the agent ([`super::handover`]).
pub(crate) const MAX_GROUPS: usize = 16384;

/// A resolved user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups, without doubles.
    pub(crate) groups: Vec<u32>,
    /// The home directory that /etc/passwd names, else "/".
    pub(crate) home: String,
}

/// Resolves `user` with the databases of the current root.
pub(crate) fn resolve(user: &User) -> Result<Identity, AgentError> {
    resolve_in(user, &read("/etc/passwd")?, &read("/etc/group")?)
}

/// A database's text; a missing one is empty.
fn read(path: &str) -> Result<String, AgentError> {
    // Not blocking: the image may have made it a FIFO.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(String::new()),
        Err(e) => return Err(e).doing(|| format!("opening the container's {path}")),
    };
    let stat = rustix::fs::fstat(&fd).doing(|| format!("reading the container's {path}"))?;
    let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    if !is_file || u64::try_from(stat.st_size).unwrap_or(u64::MAX) > MAX_DATABASE {
        return Err(AgentError::invalid(
            "image",
            format!("{path} of the image is no file of at most {MAX_DATABASE} bytes"),
        ));
    }
    let mut bytes = Vec::new();
    File::from(fd)
        .take(MAX_DATABASE)
        .read_to_end(&mut bytes)
        .doing(|| format!("reading the container's {path}"))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// name:password:uid:gid:gecos:home:shell
struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn passwd(text: &str) -> impl Iterator<Item = Passwd<'_>> {
    text.lines().filter_map(|line| {
        let mut parts = line.trim().split(':');
        let name = parts.next()?;
        let (uid, gid) = (parts.nth(1)?.parse().ok()?, parts.next()?.parse().ok()?);
        Some(Passwd {
            name,
            uid,
            gid,
            home: parts.nth(1).unwrap_or(""),
        })
    })
}

/// name:password:gid:member,member
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn groups(text: &str) -> impl Iterator<Item = Group<'_>> {
    text.lines().filter_map(|line| {
        let mut parts = line.trim().split(':');
        Some(Group {
            name: parts.next()?,
            gid: parts.nth(1)?.parse().ok()?,
            members: parts.next().unwrap_or(""),
        })
    })
}

fn resolve_in(user: &User, passwd_text: &str, group_text: &str) -> Result<Identity, AgentError> {
    let (name, group) = match user.name.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (user.name.as_str(), None),
    };
    let unknown = |what: &str, name: &str, file: &str| {
        AgentError::invalid(
            "process.user.name",
            format!("unable to find {what} {name}: no matching entries in {file}"),
        )
    };
    let by_uid = |uid: u32| passwd(passwd_text).find(|p| p.uid == uid);
    // A name wins over a number that is a name, as everywhere.
    let (uid, entry) = match (user.uid, name) {
        (Some(uid), _) => (uid, by_uid(uid)),
        (None, "") => (0, by_uid(0)),
        (None, name) => match passwd(passwd_text).find(|p| p.name == name) {
            Some(entry) => (entry.uid, Some(entry)),
            None => {
                let uid = name
                    .parse()
                    .map_err(|_| unknown("user", name, "passwd file"))?;
                (uid, by_uid(uid))
            }
        },
    };
    let gid = match (user.gid, user.uid.is_some(), group) {
        (Some(gid), _, _) => gid,
        (None, false, Some(group)) if !group.is_empty() => {
            let found = groups(group_text).find(|g| g.name == group).map(|g| g.gid);
            match found {
                Some(gid) => gid,
                None => group
                    .parse()
                    .map_err(|_| unknown("group", group, "group file"))?,
            }
        }
        _ => entry.as_ref().map_or(0, |p| p.gid),
    };
    let mut supplementary = Vec::new();
    if let Some(entry) = &entry
        && !user.strict_groups
    {
        supplementary.extend(
            groups(group_text)
                .filter(|g| g.members.split(',').any(|m| m == entry.name))
                .map(|g| g.gid),
        );
    }
    supplementary.extend(&user.additional_gids);
    // Also where setgroups or a set-group-ID file changes the first: what a file
    // denies to the group it denies to this user (CVE-2022-36109).
    supplementary.push(gid);
    supplementary.sort_unstable();
    supplementary.dedup();
    if supplementary.len() > MAX_GROUPS {
        return Err(AgentError::invalid(
            "process.user.additional_gids",
            format!("more than {MAX_GROUPS} groups"),
        ));
    }
    let home = entry.map_or("", |p| p.home);
    Ok(Identity {
        uid,
        gid,
        groups: supplementary,
        home: if home.is_empty() { "/" } else { home }.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
        app:x:1000:1001:an app:/home/app:/bin/sh\n\
        # a comment\nbroken\nbad:x:-1:x::\n\
        4242:x:7:8::/seven:\n";
    const GROUP: &str =
        "root:x:0:\nwheel:x:10:root,app\nvideo:x:44:app\nstaff:x:50:other\nbroken\n";

    fn named(name: &str) -> Result<Identity, AgentError> {
        let user = User {
            name: name.to_owned(),
            ..User::default()
        };
        resolve_in(&user, PASSWD, GROUP)
    }

    fn identity(uid: u32, gid: u32, groups: &[u32], home: &str) -> Identity {
        Identity {
            uid,
            gid,
            groups: groups.to_vec(),
            home: home.to_owned(),
        }
    }

    #[test]
    fn each_form_of_an_images_user_resolves() {
        let app = identity(1000, 1001, &[10, 44, 1001], "/home/app");
        assert_eq!(named("").unwrap(), identity(0, 0, &[0, 10], "/root"));
        assert_eq!(named("app").unwrap(), app);
        assert_eq!(named("1000").unwrap(), app);
        assert_eq!(named("1000:").unwrap(), app);
        assert_eq!(
            named("app:video").unwrap(),
            identity(1000, 44, &[10, 44], "/home/app")
        );
        assert_eq!(
            named("app:99").unwrap(),
            identity(1000, 99, &[10, 44, 99], "/home/app")
        );
        assert_eq!(named("5:6").unwrap(), identity(5, 6, &[6], "/"));
        // A name made of digits is a name.
        assert_eq!(named("4242").unwrap(), identity(7, 8, &[8], "/seven"));
    }

    #[test]
    fn unknown_names_are_refused() {
        for name in ["ghost", "app:ghost", "-1", "99999999999"] {
            let error = named(name).unwrap_err().into_wire();
            assert_eq!(error.field, "process.user.name", "{name}");
            assert!(error.message.contains("no matching entries"), "{name}");
        }
    }

    #[test]
    fn numbers_of_the_request_win_over_the_name() {
        let user = User {
            name: "app:video".to_owned(),
            uid: Some(0),
            gid: None,
            additional_gids: vec![5, 10],
            strict_groups: false,
        };
        let got = resolve_in(&user, PASSWD, GROUP).unwrap();
        assert_eq!(got, identity(0, 0, &[0, 5, 10], "/root"));
        let user = User {
            gid: Some(3),
            ..user
        };
        assert_eq!(resolve_in(&user, PASSWD, GROUP).unwrap().gid, 3);
    }

    #[test]
    fn strict_groups_are_the_requests_alone() {
        let user = User {
            name: "app".to_owned(),
            additional_gids: vec![5],
            strict_groups: true,
            ..User::default()
        };
        let got = resolve_in(&user, PASSWD, GROUP).unwrap();
        assert_eq!(got, identity(1000, 1001, &[5, 1001], "/home/app"));
    }

    #[test]
    fn an_image_without_databases_has_numbers_only() {
        let user = User {
            uid: Some(12),
            ..User::default()
        };
        assert_eq!(
            resolve_in(&user, "", "").unwrap(),
            identity(12, 0, &[0], "/")
        );
    }

    proptest! {
        #[test]
        fn any_database_is_survived(passwd in "\\PC{0,200}", group in "([a-z:,0-9]{0,20}\n){0,5}", name in "\\PC{0,12}") {
            let user = User { name, ..User::default() };
            let _ = resolve_in(&user, &passwd, &group);
        }
    }
}
