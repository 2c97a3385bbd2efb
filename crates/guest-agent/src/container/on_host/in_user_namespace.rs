//! Containers of a pod that has a user namespace.

use super::{IMAGE, VOLUME, in_own_mounts, process, run_as, shell, volume};
use crate::container::mounts::Source;
use crate::users::{Ids, Users};
use crate::{layout, network};
use guest_api::proto::{Capabilities, IdRange, Nic, User, UserNamespace};
use nix::sched::CloneFlags;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::rc::Rc;

/// The users of a pod that has the users and groups from 1000 and 2000 on.
fn own_users() -> Rc<Users> {
    users_with(&[])
}

/// As [`own_users`], with these interfaces.
fn users_with(nics: &[Nic]) -> Rc<Users> {
    let range = |first| Some(IdRange { first, count: 500 });
    let wanted = UserNamespace {
        uids: range(1000),
        gids: range(2000),
    };
    let ids = Ids::check(&wanted).unwrap();
    Rc::new(Users::create(ids, nics).unwrap())
}

fn granted(names: &[&str]) -> Capabilities {
    let names: Vec<String> = names.iter().map(|name| format!("CAP_{name}")).collect();
    Capabilities {
        bounding: names.clone(),
        effective: names.clone(),
        permitted: names,
        ..Capabilities::default()
    }
}

fn owner(path: &str) -> (u32, u32) {
    let found = fs::symlink_metadata(path).unwrap();
    (found.uid(), found.gid())
}

#[test]
fn a_user_namespace_owns_the_image_and_what_its_root_makes() {
    let name = "in_user_namespace::a_user_namespace_owns_the_image_and_what_its_root_makes";
    in_own_mounts(name, || {
        let users = own_users();
        std::os::unix::fs::chown(format!("{IMAGE}/file"), Some(10), Some(11)).unwrap();
        let script = "cat /proc/self/uid_map /proc/self/gid_map; \
            cd /; stat -c %n:%u:%g . data dev dev/null dev/pts dev/pts/ptmx dev/mqueue work file; \
            echo x >>/file; chown 10:11 /data/secret; touch /v/root; mkdir /real/made; \
            stat -c %n:%u:%g /data/secret /v/root /real /image/f; echo x >/image/f";
        let mut request = shell(script);
        process(&mut request).cwd = "/work".to_owned();
        process(&mut request).capabilities = Some(granted(&["CHOWN", "DAC_OVERRIDE"]));
        fs::create_dir("/run/other").unwrap();
        fs::write("/run/other/f", "").unwrap();
        let mut image = volume("/image");
        image.volume.clear();
        image.image.clone_from(&request.image);
        request.mounts = vec![volume("/v"), image];
        users
            .as_root(|| fs::create_dir(format!("{VOLUME}/v")))
            .unwrap()
            .unwrap();
        let sources = vec![
            Source::Volume(format!("{VOLUME}/v")),
            Source::Image("/run/other".to_owned()),
        ];
        let said = run_as(Rc::clone(&users), request, sources).unwrap();
        let lines: Vec<&str> = said.lines().collect();
        let map = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(
            (map(lines[0]), map(lines[1])),
            ("0 1000 500".into(), "0 2000 500".into())
        );
        let owners = |names: &[&str]| {
            names
                .iter()
                .map(|n| format!("{n}:0:0\n"))
                .collect::<String>()
        };
        let shown = owners(&[
            ".",
            "data",
            "dev",
            "dev/null",
            "dev/pts",
            "dev/pts/ptmx",
            "dev/mqueue",
            "work",
        ]) + "file:10:11\n/data/secret:10:11\n"
            + &owners(&["/v/root", "/real", "/image/f"]);
        assert_eq!(lines[2..15].join("\n") + "\n", shown);
        assert!(said.contains("/image/f: Read-only file system"), "{said}");
        // On the file systems of the pod they have the guest's ids, on the image
        // nothing has changed.
        assert_eq!(owner(&format!("{VOLUME}/v/root")), (1000, 2000));
        let upper = format!("{}/layer/upper", layout::RUN);
        let written = ["", "/file", "/real/made", "/data/secret"];
        assert_eq!(
            written.map(|path| owner(&format!("{upper}{path}"))),
            [(1000, 2000), (1010, 2011), (1000, 2000), (1010, 2011)]
        );
        assert_eq!(owner(&format!("{IMAGE}/data/secret")), (0, 0));
        let mut nobody = shell("true");
        process(&mut nobody).user = Some(User {
            uid: Some(500),
            ..User::default()
        });
        let error = run_as(users, nobody, Vec::new()).unwrap_err();
        assert!(error.contains("the users 0 to 499"), "{error}");
    });
}

#[test]
fn a_user_namespaces_rights_end_with_what_belongs_to_it() {
    let name = "in_user_namespace::a_user_namespaces_rights_end_with_what_belongs_to_it";
    in_own_mounts(name, || {
        let users = own_users();
        let script = "hostname inside; hostname; ip link set lo down; ip link show lo; \
            mount -t tmpfs none /data; touch /data/x; ls /data; umount /data; ls /data; \
            umount /proc/timer_list; umount /dev/shm; mount -o remount,rw /proc/sys; \
            mknod /dev/vda b 254 0; chown 600 /file; \
            mount -t proc none /real";
        let mut request = shell(script);
        let rights = ["CHOWN", "SYS_ADMIN", "NET_ADMIN", "MKNOD", "SYS_RESOURCE"];
        process(&mut request).capabilities = Some(granted(&rights));
        let said = run_as(Rc::clone(&users), request, Vec::new()).unwrap();
        for line in [
            "inside",
            "1: lo: <LOOPBACK> mtu 65536 qdisc noqueue qlen 1000",
            "x\nsecret",
            "umount: can't unmount /proc/timer_list: Invalid argument",
            "umount: can't unmount /dev/shm: Invalid argument",
            "mknod: /dev/vda: Operation not permitted",
            "chown: /file: Invalid argument",
        ] {
            assert!(said.contains(&format!("{line}\n")), "{said}");
        }
        assert_eq!(
            said.matches("mount: permission denied").count(),
            2,
            "{said}"
        );
        // The agent is where the container is, so this is the pod's name.
        assert_eq!(rustix::system::uname().nodename(), c"inside");
    });
}

#[test]
fn a_privileged_container_does_not_own_the_guests_devices() {
    let name = "in_user_namespace::a_privileged_container_does_not_own_the_guests_devices";
    in_own_mounts(name, || {
        let mut request = shell("stat -c %u:%g /dev/kmsg /dev/null; echo >/dev/kmsg; touch /sys/x");
        request.privileged = true;
        let said = run_as(own_users(), request, Vec::new()).unwrap();
        assert!(said.starts_with("65534:65534\n0:0\n"), "{said}");
        for path in ["/dev/kmsg", "/sys/x"] {
            assert!(
                said.contains(&format!("{path}: Permission denied")),
                "{said}"
            );
        }
    });
}

#[test]
fn interfaces_become_the_user_namespaces() {
    let name = "in_user_namespace::interfaces_become_the_user_namespaces";
    in_own_mounts(name, || {
        nix::sched::unshare(CloneFlags::CLONE_NEWNET).unwrap();
        // The other end is in it, and is to stay when this process leaves.
        let _initial = fs::File::open("/proc/thread-self/ns/net").unwrap();
        let words = "link add name va address 02:00:00:00:00:01 type veth peer name vb";
        let made = Command::new("ip").args(words.split(' ')).status().unwrap();
        assert!(made.success());
        let nics = [Nic {
            name: "eth0".to_owned(),
            mac: vec![2, 0, 0, 0, 0, 1],
            addresses: vec!["10.9.9.1/24".to_owned()],
            ..Nic::default()
        }];
        let users = users_with(&nics);
        network::set_up(&nics).unwrap();
        let mut request =
            shell("ip addr show eth0; ip link set eth0 mtu 1300; ip link; ip link show vb");
        process(&mut request).capabilities = Some(granted(&["NET_ADMIN"]));
        let said = run_as(Rc::clone(&users), request.clone(), Vec::new()).unwrap();
        assert!(said.contains("inet 10.9.9.1/24"), "{said}");
        assert!(
            said.contains("eth0@if") && said.contains("mtu 1300"),
            "{said}"
        );
        assert!(said.contains("can't find device 'vb'"), "{said}");
        // Made once more, as by a SetupSandbox that is repeated after a failure.
        let again = users_with(&nics);
        network::set_up(&nics).unwrap();
        let said = run_as(again, request, Vec::new()).unwrap();
        assert!(said.contains("inet 10.9.9.1/24"), "{said}");
    });
}
