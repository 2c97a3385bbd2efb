//! Pods with a user namespace.

use crate::node::{Node, PAGES, input, until};
use sandbox::{
    ContainerSpec, ExecSpec, HostMount, IdRange, Medium, MountSource, MountSpec, SandboxSpec,
    UserNamespace, VolumeSpec,
};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// A pod whose users are those from 1000 and whose groups those from 2000 on.
fn pod(name: &str) -> SandboxSpec {
    let range = |first| IdRange {
        first,
        count: 65536,
    };
    let volume = |name: &str, medium| VolumeSpec {
        group: None,
        name: name.to_owned(),
        medium,
        size_limit: 1 << 20,
    };
    let sysctls = [
        ("kernel.shm_rmid_forced", "1"),
        ("fs.mqueue.msg_max", "100"),
        ("net.ipv4.ip_forward", "1"),
        ("vm.max_map_count", "70000"),
    ];
    SandboxSpec {
        user_namespace: Some(UserNamespace {
            uids: range(1000),
            gids: range(2000),
        }),
        sysctls: sysctls
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        shares: true,
        volumes: vec![
            volume("disk", Medium::Scratch),
            volume("memory", Medium::Memory),
        ],
        ..Node::spec(name)
    }
}

fn mount(source: MountSource, destination: &str) -> MountSpec {
    MountSpec {
        source,
        sub_path: String::new(),
        destination: destination.to_owned(),
        read_only: false,
    }
}

fn share(path: &Path, id_mapped: bool) -> MountSource {
    MountSource::Host(HostMount {
        within: Vec::new(),
        path: path.to_owned(),
        host_to_container: false,
        recursive_read_only: false,
        id_mapped,
    })
}

/// An idle container with all capabilities.
fn idle(node: &Node, name: &str, mounts: Vec<MountSpec>) -> ContainerSpec {
    let mut spec = node.container(name, "sleep 100000");
    let all = sandbox::capabilities::ALL.iter();
    spec.process.capabilities = all.map(|name| format!("CAP_{name}")).collect();
    spec.mounts = mounts;
    spec
}

/// What a script writes; it must succeed.
async fn out(node: &Node, id: &str, script: &str) -> String {
    let done = node.sh(id, script).await;
    let stderr = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.code, 0, "{script}: {stderr}");
    String::from_utf8(done.stdout).unwrap()
}

fn owner(path: &Path) -> (u32, u32) {
    let meta = fs::symlink_metadata(path).unwrap();
    (meta.uid(), meta.gid())
}

#[tokio::test(flavor = "multi_thread")]
async fn root_of_a_user_namespace_is_none_outside() {
    let Some(node) = Node::new(2).await else {
        return;
    };
    let (plain, mapped) = (
        node.dir.path().join("plain"),
        node.dir.path().join("mapped"),
    );
    for dir in [&plain, &mapped] {
        fs::create_dir(dir).unwrap();
        fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).unwrap();
        fs::write(dir.join("hosts"), "").unwrap();
    }
    let pod = node
        .sandboxes
        .run_sandbox(pod("own"))
        .await
        .unwrap()
        .spec
        .id;
    let mut first = idle(
        &node,
        "first",
        vec![
            mount(MountSource::Volume("disk".to_owned()), "/disk"),
            mount(MountSource::Volume("memory".to_owned()), "/memory"),
            mount(share(&plain, false), "/plain"),
            mount(share(&mapped, true), "/mapped"),
            mount(MountSource::Image(PAGES.to_owned()), "/pages"),
        ],
    );
    first.mounts[4].read_only = true;
    let mut second = idle(&node, "second", first.mounts[..2].to_vec());
    (second.process.uid, second.process.gid) = (Some(500), Some(600));
    let first = node.start(&pod, first).await;
    let second = node.start(&pod, second).await;

    for id in [&first, &second] {
        let maps = out(&node, id, "cat /proc/self/uid_map /proc/1/gid_map").await;
        let numbers: Vec<&str> = maps.split_whitespace().collect();
        assert_eq!(numbers, ["0", "1000", "65536", "0", "2000", "65536"]);
    }
    let namespace = "for kind in user net; do readlink /proc/self/ns/$kind; done";
    assert_eq!(
        out(&node, &first, namespace).await,
        out(&node, &second, namespace).await
    );
    assert_eq!(out(&node, &second, "id -u; id -g").await, "500\n600\n");
    owners(&node, &first, &second).await;
    // On the host, and for pods without a namespace, they are others.
    assert_eq!(owner(&plain.join("made")), (1000, 2000));
    assert_eq!(owner(&mapped.join("made")), (0, 0));
    assert_eq!(owner(&mapped.join("given")), (5, 6));
    rights(&node, &first).await;
    terminal(&node, &first).await;
    let stats = node.sandboxes.stats(&pod).await.unwrap();
    assert!(stats.interfaces.iter().all(|i| i.name == "lo"), "{stats:?}");
    without(&node, &plain).await;
}

/// Who files belong to, as the pod sees it.
async fn owners(node: &Node, first: &str, second: &str) {
    let script = "cd /; stat -c %u:%g . bin/busybox etc/hosts dev dev/shm dev/null dev/pts \
        dev/mqueue disk memory pages/page/index.html mapped/hosts | sort -u";
    assert_eq!(out(node, first, script).await, "0:0\n");
    assert_eq!(
        out(node, first, "stat -c %u:%g /plain/hosts").await,
        "65534:65534\n"
    );
    out(
        node,
        first,
        "touch /disk/f /memory/f /plain/made /mapped/made /mapped/given /bin/new /dev/shm/f &&
            chown 5:6 /mapped/given /disk/f && echo x >>/etc/hosts && echo x >>/bin/busybox.txt",
    )
    .await;
    let seen = out(node, second, "stat -c %u:%g /disk/f /memory/f").await;
    assert_eq!(seen, "5:6\n0:0\n");
    let made = "touch /disk/mine /memory/mine && stat -c %u:%g /disk/mine /memory/mine";
    assert_eq!(out(node, second, made).await, "500:600\n500:600\n");
    assert_ne!(node.sh(second, "touch /bin/x").await.code, 0);
    let seen = out(node, first, "stat -c %u:%g /mapped/given /disk/mine").await;
    assert_eq!(seen, "5:6\n500:600\n");
}

/// What root may do: in the pod's namespaces much, to the guest nothing.
async fn rights(node: &Node, id: &str) {
    let sysctls = "cd /proc/sys && cat kernel/shm_rmid_forced fs/mqueue/msg_max \
        net/ipv4/ip_forward vm/max_map_count";
    assert_eq!(out(node, id, sysctls).await, "1\n100\n1\n70000\n");
    let script = "hostname other && hostname && ip addr add 10.9.9.9/32 dev lo && \
        mount -t tmpfs none /mnt && touch /mnt/x && umount /mnt && ping -c 1 -W 5 10.9.9.9 >/dev/null";
    assert_eq!(
        out(node, id, &format!("mkdir -p /mnt && {script}")).await,
        "other\n"
    );
    for forbidden in [
        "mknod /disk b 254 0",
        "umount /proc/timer_list",
        "mount -o remount,rw /proc/sys",
        "mount -t ext4 /dev/vdb1 /mnt",
        "chown 70000 /disk/f",
        "date -s 2001-01-01; date | grep 2001",
        "echo 1 >/sys/fs/cgroup/memory.max",
        "echo x >/pages/page/index.html",
    ] {
        assert_ne!(node.sh(id, forbidden).await.code, 0, "{forbidden}");
    }
}

/// A terminal belongs to the user of its process.
async fn terminal(node: &Node, id: &str) {
    let spec = ExecSpec {
        args: ["sh"].map(str::to_owned).to_vec(),
        terminal: true,
        stdin: true,
        ..ExecSpec::default()
    };
    let mut session = node.sandboxes.exec(id, spec).await.unwrap();
    input(&session, "stat -c own=%u:%g $(tty); exit\n").await;
    until(&mut session, "own=0:5").await;
}

/// Another pod, with the guest's users.
async fn without(node: &Node, dir: &Path) {
    let mut spec = Node::spec("without");
    spec.shares = true;
    let pod = node.sandboxes.run_sandbox(spec).await.unwrap().spec.id;
    let spec = idle(node, "c", vec![mount(share(dir, false), "/plain")]);
    let id = node.start(&pod, spec).await;
    let seen = out(node, &id, "stat -c %u:%g /plain/made /plain/hosts /bin").await;
    assert_eq!(seen, "1000:2000\n0:0\n0:0\n");
    let map = out(node, &id, "cat /proc/self/uid_map").await;
    let map: Vec<&str> = map.split_whitespace().collect();
    assert_eq!(map, ["0", "0", "4294967295"]);
}
