//! Whose ids the containers' users and groups are: the guest's own, or those of
//! a user namespace of the pod.
//!
//! With a user namespace, the pod has network, IPC and UTS namespaces that belong
//! to it, and the agent moves into these: what it configures and measures from
//! then on is the pod's. It stays a user of the guest, as does each of its
//! children until it has nothing left to do but to become its program: all that
//! is mounted is mounted with rights over the guest.
//!
//! File systems of this pod alone (scratch disk, tmpfs) hold the ids that the
//! guest's kernel has, so nothing there is mapped; images, and what is shared
//! with others, hold the containers' ids and are mounted with a mapping.

use crate::container::user::Identity;
use crate::error::{AgentError, Doing};
use crate::log;
use crate::network;
use crate::sys::{link, mount_attr, process};
use guest_api::proto;
use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Gid, Pid, Uid, WaitOptions, waitpid};
use rustix::thread::{set_thread_res_gid, set_thread_res_uid};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Namespaces that belong to a pod's user namespace and that the agent is in.
const SHARED: [(&str, CloneFlags); 3] = [
    ("net", CloneFlags::CLONE_NEWNET),
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("uts", CloneFlags::CLONE_NEWUTS),
];

/// See the module's documentation.
#[derive(Debug)]
pub(crate) enum Users {
    /// The guest's.
    Guest,
    /// Those of a user namespace.
    Own(UserNamespace),
}

/// A user namespace that exists.
#[derive(Debug)]
pub(crate) struct UserNamespace {
    namespace: OwnedFd,
    ids: Ids,
}

/// What ids of the guest a user namespace has, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ids {
    uids: Range,
    gids: Range,
}

/// The ids 0 to `count` - 1 inside are those from `first` on outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    first: u32,
    count: u32,
}

impl Range {
    fn check(range: Option<proto::IdRange>, field: &str) -> Result<Self, AgentError> {
        let proto::IdRange { first, count } = range.unwrap_or_default();
        let bad = |part, problem| Err(AgentError::invalid(format!("{field}.{part}"), problem));
        if first == 0 {
            return bad("first", "0 is the guest's root; name another first id");
        }
        if count == 0 {
            return bad("count", "a user namespace has at least one id");
        }
        // The last number of all is no id.
        if first.checked_add(count).is_none() {
            return bad("count", "the ids end past 4294967294");
        }
        Ok(Self { first, count })
    }

    fn outside(self, id: u32) -> Option<u32> {
        (id < self.count).then(|| self.first + id)
    }

    /// As /proc/PID/uid_map takes it.
    fn line(self) -> String {
        format!("0 {} {}\n", self.first, self.count)
    }
}

impl Ids {
    /// Checks a request's user namespace.
    pub(crate) fn check(wanted: &proto::UserNamespace) -> Result<Self, AgentError> {
        Ok(Self {
            uids: Range::check(wanted.uids, "user_namespace.uids")?,
            gids: Range::check(wanted.gids, "user_namespace.gids")?,
        })
    }
}

impl Users {
    /// Makes a user namespace and what belongs to it, `nics` included, and moves
    /// the agent into the latter.
    pub(crate) fn create(ids: Ids, nics: &[proto::Nic]) -> Result<Self, AgentError> {
        let doing = || "making the pod's user namespace".to_owned();
        let (wait, end) = pipe_with(PipeFlags::CLOEXEC).doing(doing)?;
        let flags = SHARED
            .iter()
            .fold(CloneFlags::CLONE_NEWUSER, |flags, (_, flag)| flags | *flag);
        // It holds the namespaces until the agent has them.
        let hold = || i32::from(rustix::io::read(&wait, &mut [0]) != Ok(0));
        let holder = process::fork_into(flags, None, &[wait.as_fd()], hold).doing(doing)?;
        let moved = map_and_join(holder, ids, nics);
        drop(end);
        let _ = waitpid(Some(holder), WaitOptions::empty());
        let namespace = moved?;
        link::set_up("lo").doing(|| "bringing the interface lo up".into())?;
        Ok(Self::Own(UserNamespace { namespace, ids }))
    }

    /// For children that have to keep it.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Guest => None,
            Self::Own(own) => Some(own.namespace.as_fd()),
        }
    }

    /// A container's ids as the guest's kernel has them; `None` if there are none
    /// for them.
    pub(crate) fn outside(&self, uid: u32, gid: u32) -> Option<(Uid, Gid)> {
        let (uid, gid) = match self {
            Self::Guest => (uid, gid),
            Self::Own(own) => (own.ids.uids.outside(uid)?, own.ids.gids.outside(gid)?),
        };
        Some((Uid::from_raw(uid), Gid::from_raw(gid)))
    }

    /// The containers' root.
    pub(crate) fn root(&self) -> (Uid, Gid) {
        self.outside(0, 0).unwrap_or((Uid::ROOT, Gid::ROOT))
    }

    /// The ids of who a process is to run as; all must be there.
    pub(crate) fn of(&self, identity: &Identity) -> Result<(Uid, Gid), AgentError> {
        let groups = identity.groups.iter().map(|group| (identity.uid, *group));
        for (uid, gid) in groups.chain([(identity.uid, identity.gid)]) {
            if self.outside(uid, gid).is_none() {
                let Self::Own(own) = self else { continue };
                let problem = format!(
                    "the user {uid} or the group {gid} is not in the pod's user namespace, which has the users 0 to {} and the groups 0 to {}; choose one of these or give the namespace more",
                    own.ids.uids.count - 1,
                    own.ids.gids.count - 1
                );
                return Err(AgentError::invalid("process.user", problem));
            }
        }
        let ids = self.outside(identity.uid, identity.gid);
        Ok(ids.unwrap_or_else(|| self.root()))
    }

    /// What is on the detached `mount` belongs to the containers' users.
    pub(crate) fn map(&self, mount: impl AsFd, recursive: bool) -> Result<(), Errno> {
        match self.fd() {
            None => Ok(()),
            Some(namespace) => mount_attr::map_ids(mount, namespace, recursive),
        }
    }

    /// Does `work` as the containers' root, but with all rights over the guest:
    /// what it makes is that root's.
    pub(crate) fn as_root<T>(&self, work: impl FnOnce() -> T) -> Result<T, AgentError> {
        self.become_root()?;
        let result = work();
        if matches!(self, Self::Own(_)) {
            let back = set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
                .and_then(|()| set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT));
            if back.is_err() {
                log::fatal("cannot become the guest's root again");
                process::exit_now(1);
            }
        }
        Ok(result)
    }

    /// As [`Users::as_root`], for a child that does not return from it but by
    /// [`Users::enter`].
    pub(crate) fn become_root(&self) -> Result<(), AgentError> {
        let Self::Own(_) = self else { return Ok(()) };
        let (uid, gid) = self.root();
        let switch = || -> Result<(), Errno> {
            // Kept by the real user's being root, but no longer effective.
            let rights = rustix::thread::capabilities(None)?;
            set_thread_res_gid(Gid::ROOT, gid, Gid::ROOT)?;
            set_thread_res_uid(Uid::ROOT, uid, Uid::ROOT)?;
            rustix::thread::set_capabilities(None, rights)
        };
        switch().doing(|| "becoming the containers' root".into())
    }

    /// Child: leaves the guest's users, and all rights over the guest with them,
    /// for a process in mounts that belong to the namespace already.
    pub(crate) fn enter(&self) -> Result<(), AgentError> {
        let Self::Own(own) = self else { return Ok(()) };
        setns(&own.namespace, CloneFlags::CLONE_NEWUSER)
            .map_err(to_errno)
            .doing(|| "joining the pod's user namespace".into())
    }

    /// As [`Users::enter`], for a container's first process: copies of its mounts
    /// are the namespace's from then on. The container can add to them, but not
    /// take away what covers or protects others.
    pub(crate) fn enter_with_mounts(&self) -> Result<(), AgentError> {
        self.enter()?;
        let Self::Own(_) = self else { return Ok(()) };
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP)
            .map_err(to_errno)
            .doing(|| "giving the container's mounts to the pod's user namespace".into())
    }
}

/// Gives the namespaces of `holder` their ids and interfaces, and joins those
/// that belong to its user namespace, which is returned.
fn map_and_join(holder: Pid, ids: Ids, nics: &[proto::Nic]) -> Result<OwnedFd, AgentError> {
    let directory = format!("/proc/{}", holder.as_raw_nonzero());
    for (file, range) in [("uid_map", ids.uids), ("gid_map", ids.gids)] {
        std::fs::write(format!("{directory}/{file}"), range.line())
            .doing(|| format!("writing the {file} of the pod's user namespace"))?;
    }
    let open = |name: &str| {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::open(format!("{directory}/ns/{name}"), flags, Mode::empty())
            .doing(|| format!("opening the pod's {name} namespace"))
    };
    for (name, flag) in SHARED {
        let namespace = open(name)?;
        if flag == CloneFlags::CLONE_NEWNET {
            network::give(nics, namespace.as_fd())?;
        }
        setns(&namespace, flag)
            .map_err(to_errno)
            .doing(|| format!("joining the pod's {name} namespace"))?;
    }
    open("user")
}

fn to_errno(e: nix::errno::Errno) -> Errno {
    Errno::from_raw_os_error(e as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(uids: (u32, u32), gids: (u32, u32)) -> Result<Ids, AgentError> {
        let range = |(first, count)| Some(proto::IdRange { first, count });
        Ids::check(&proto::UserNamespace {
            uids: range(uids),
            gids: range(gids),
        })
    }

    #[test]
    fn ranges_that_are_none_are_refused_by_field() {
        let field = |uids, gids| ids(uids, gids).unwrap_err().into_wire().field;
        assert_eq!(field((0, 5), (1, 5)), "user_namespace.uids.first");
        assert_eq!(field((1, 0), (1, 5)), "user_namespace.uids.count");
        assert_eq!(
            field((1, 5), (2, u32::MAX - 1)),
            "user_namespace.gids.count"
        );
        ids((1, u32::MAX - 1), (7, 1)).unwrap();
        let none = Ids::check(&proto::UserNamespace::default()).unwrap_err();
        assert_eq!(none.into_wire().field, "user_namespace.uids.first");
    }

    #[test]
    fn ids_are_mapped_up_to_the_end_of_their_range() {
        let namespace = rustix::fs::open("/", OFlags::PATH, Mode::empty()).unwrap();
        let ids = ids((1000, 10), (2000, 20)).unwrap();
        assert_eq!(ids.uids.line(), "0 1000 10\n");
        let users = Users::Own(UserNamespace { namespace, ids });
        let raw = |(uid, gid): (Uid, Gid)| (uid.as_raw(), gid.as_raw());
        assert_eq!(users.outside(9, 19).map(raw), Some((1009, 2019)));
        assert_eq!(users.outside(10, 0), None);
        assert_eq!(users.outside(0, 20), None);
        assert_eq!(raw(users.root()), (1000, 2000));
        let identity = |uid, gid, groups: &[u32]| Identity {
            uid,
            gid,
            groups: groups.to_vec(),
            home: "/".to_owned(),
        };
        assert_eq!(
            users.of(&identity(1, 2, &[2, 3])).map(raw).unwrap(),
            (1001, 2002)
        );
        for wrong in [identity(10, 0, &[]), identity(0, 0, &[0, 20])] {
            let error = users.of(&wrong).unwrap_err().into_wire();
            assert_eq!(error.field, "process.user");
            assert!(error.message.contains("0 to 19"), "{}", error.message);
        }
        let anyone = identity(u32::MAX - 1, 7, &[]);
        assert_eq!(
            Users::Guest.of(&anyone).map(raw).unwrap(),
            (u32::MAX - 1, 7)
        );
    }
}
