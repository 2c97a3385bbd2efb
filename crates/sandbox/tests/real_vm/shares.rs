//! Directories and files of the host in containers.

use crate::node::{Node, PATIENCE};
use sandbox::{ContainerSpec, HostMount, MountSource, MountSpec, SandboxError};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Versions that a ConfigMap goes through while it is read.
const SWAPS: u32 = 30;
/// Its keys.
const KEYS: [&str; 3] = ["a", "b", "c"];

fn host(path: &Path, destination: &str, read_only: bool) -> MountSpec {
    MountSpec {
        source: MountSource::Host(HostMount {
            path: path.to_owned(),
            host_to_container: false,
            recursive_read_only: false,
            id_mapped: false,
            within: Vec::new(),
        }),
        sub_path: String::new(),
        destination: destination.to_owned(),
        read_only,
    }
}

impl Node {
    /// A sandbox that takes directories of the host.
    async fn sharing_sandbox(&self, name: &str) -> String {
        let mut spec = Self::spec(name);
        spec.shares = true;
        let made = self.sandboxes.run_sandbox(spec).await.unwrap();
        made.spec.id
    }

    /// A directory of the host.
    fn host_dir(&self, name: &str) -> PathBuf {
        let dir = self.dir.path().join("host").join(name);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn idle(&self, name: &str, mounts: Vec<MountSpec>) -> ContainerSpec {
        let mut spec = self.container(name, "sleep 100000");
        spec.mounts = mounts;
        spec
    }

    /// What a script writes; it must succeed.
    async fn out(&self, id: &str, script: &str) -> String {
        let done = self.sh(id, script).await;
        let stderr = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.code, 0, "{script}: {stderr}");
        String::from_utf8(done.stdout).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn host_directories_are_read_written_and_not_left() {
    let Some(node) = Node::new(2).await else {
        return;
    };
    let (data, fixed) = (node.host_dir("data"), node.host_dir("fixed"));
    fs::write(data.join("hello"), "from the host\n").unwrap();
    fs::write(fixed.join("f"), "fixed\n").unwrap();
    fs::write(node.dir.path().join("host/secret"), "the host's\n").unwrap();
    let file = node.dir.path().join("host/one.conf");
    fs::write(&file, "one\n").unwrap();
    let link = node.dir.path().join("host/link");
    symlink(&data, &link).unwrap();
    let pod = node.sharing_sandbox("mounts").await;
    let mounts = vec![
        host(&link, "/d", false),
        host(&fixed, "/ro", true),
        host(&file, "/etc/one.conf", false),
    ];
    let id = node.start(&pod, node.idle("c", mounts)).await;

    assert_eq!(node.out(&id, "cat /d/hello").await, "from the host\n");
    let script = "cd /d && mkdir -p a/b && echo one >a/b/f && mv a/b/f a/g && ln a/g a/h &&
        ln -s g a/l && echo two >>a/l && rm a/h && rmdir a/b && sync a/g && stat -c %s a/g";
    assert_eq!(node.out(&id, script).await, "8\n");
    assert_eq!(fs::read_to_string(data.join("a/g")).unwrap(), "one\ntwo\n");
    assert_eq!(fs::read_link(data.join("a/l")).unwrap(), Path::new("g"));
    assert!(!data.join("a/b").exists());
    // What the host does is seen by the next call.
    for version in ["first", "second", "later"] {
        fs::write(data.join("hello"), version).unwrap();
        assert_eq!(node.out(&id, "cat /d/hello").await, version);
    }
    fs::rename(data.join("a"), data.join("z")).unwrap();
    assert_eq!(node.out(&id, "ls /d").await, "hello\nz\n");
    // One file.
    assert_eq!(
        node.out(&id, "cat /etc/one.conf; echo two >/etc/one.conf")
            .await,
        "one\n"
    );
    assert_eq!(fs::read_to_string(&file).unwrap(), "two\n");
    // A program of a share runs.
    assert_eq!(
        node.out(&id, "cp /bin/busybox /d/echo && /d/echo hi").await,
        "hi\n"
    );

    assert_read_only(&node, &id, &fixed).await;
    assert_confined(&node, &id, &data).await;
}

/// Every way to change a read-only share fails, and the host sees nothing.
async fn assert_read_only(node: &Node, id: &str, dir: &Path) {
    assert_eq!(node.out(id, "cat /ro/f").await, "fixed\n");
    for change in [
        "echo x >/ro/f",
        "echo x >>/ro/f",
        "touch /ro/new",
        "mkdir /ro/new",
        "rm /ro/f",
        "mv /ro/f /ro/g",
        "ln -s f /ro/l",
        "ln /ro/f /ro/l",
        "chmod 777 /ro/f",
        "chown 1 /ro/f",
        "touch /ro/f",
        "truncate -s 0 /ro/f",
        "mknod /ro/p p",
    ] {
        let done = node.sh(id, change).await;
        assert_ne!(done.code, 0, "{change}");
    }
    assert_eq!(fs::read_to_string(dir.join("f")).unwrap(), "fixed\n");
    assert_eq!(fs::read_dir(dir).unwrap().count(), 1);
}

/// Links lead nowhere but in the guest, and no device of the host is opened.
async fn assert_confined(node: &Node, id: &str, dir: &Path) {
    let secret = dir.parent().unwrap().join("secret");
    symlink(&secret, dir.join("absolute")).unwrap();
    symlink("../secret", dir.join("relative")).unwrap();
    node.out(id, "echo 'the guest' >/secret").await;
    assert_eq!(node.out(id, "cat /d/relative").await, "the guest\n");
    assert_ne!(node.sh(id, "cat /d/absolute").await.code, 0);
    let shown = node.out(id, "ls /d/..; cat /d/../secret").await;
    assert!(shown.contains("bin"), "{shown}");
    assert!(shown.ends_with("the guest\n"), "{shown}");
    // The guest's link, followed by nobody on the host.
    node.out(id, "ln -s /secret /d/mine && cat /d/mine").await;
    // No device node is made on the host's file system, none there is opened.
    assert_ne!(node.sh(id, "mknod /d/null c 1 3").await.code, 0);
    assert!(!dir.join("null").exists());
    let fifo = dir.join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    // The pipe is the guest's own: nobody on the host gets what goes through.
    let piped = node.out(id, "echo in >/d/fifo & cat /d/fifo").await;
    assert_eq!(piped, "in\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_many_files_large_files_and_a_second_pod() {
    let Some(node) = Node::new(2).await else {
        return;
    };
    let (data, group) = (node.host_dir("data"), node.host_dir("group"));
    chown(&group, Some(0), Some(2000)).unwrap();
    fs::set_permissions(&group, fs::Permissions::from_mode(0o2770)).unwrap();
    let bytes: Vec<u8> = (0..1u32 << 18)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    fs::write(data.join("big"), &bytes).unwrap();
    let pod = node.sharing_sandbox("first").await;
    let id = node
        .start(&pod, node.idle("root", vec![host(&data, "/d", false)]))
        .await;

    // A file of 1 MiB, there and back.
    node.out(
        &id,
        "cp /d/big /tmp/big && cp /tmp/big /d/back && cmp /d/back /tmp/big",
    )
    .await;
    assert!(fs::read(data.join("back")).unwrap() == bytes);
    // Many small ones.
    let script =
        "mkdir /d/many && cd /d/many && for i in $(seq 1000); do echo $i >$i; done; ls | wc -l";
    assert_eq!(node.out(&id, script).await, "1000\n");
    assert_eq!(fs::read_dir(data.join("many")).unwrap().count(), 1000);
    for n in 1..=1000 {
        let text = fs::read_to_string(data.join("many").join(n.to_string())).unwrap();
        assert_eq!(text, format!("{n}\n"));
    }
    assert_eq!(
        node.out(&id, "cat /d/many/* | wc -l; rm -r /d/many").await,
        "1000\n"
    );
    assert!(!data.join("many").exists());

    // A user who is let in by a supplementary group.
    let mut user = node.idle(
        "user",
        vec![host(&group, "/g", false), host(&data, "/d", true)],
    );
    user.process.uid = Some(1000);
    user.process.gid = Some(1000);
    user.process.additional_gids = vec![2000];
    let user = node.start(&pod, user).await;
    node.out(
        &user,
        "echo x >/g/f && mkdir /g/d && ln -s f /g/l && chmod 600 /g/f",
    )
    .await;
    for (name, mode) in [("f", 0o600), ("d", 0o2755)] {
        let meta = fs::symlink_metadata(group.join(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (1000, 2000), "{name}");
        assert_eq!(meta.mode() & 0o7777, mode, "{name}");
    }
    assert_ne!(node.sh(&user, "chown 0 /g/f").await.code, 0);
    assert_ne!(node.sh(&user, "echo x >/d/new").await.code, 0);
    // The other container's right to write is as it was.
    node.out(&id, "echo x >/d/new").await;

    // Another pod, at the same time.
    let second = node.sharing_sandbox("second").await;
    let other = node
        .start(&second, node.idle("c", vec![host(&data, "/d", false)]))
        .await;
    for n in 0..5 {
        node.out(&id, &format!("echo first {n} >>/d/log")).await;
        node.out(&other, &format!("echo second {n} >>/d/log")).await;
        let last = node.out(&id, "tail -n 1 /d/log").await;
        assert_eq!(last, format!("second {n}\n"));
    }
    assert_eq!(
        fs::read_to_string(data.join("log"))
            .unwrap()
            .lines()
            .count(),
        10
    );
    // A container that goes takes no share of another's away.
    node.sandboxes.remove_container(&user).await.unwrap();
    assert_eq!(node.out(&id, "cat /d/new").await, "x\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn config_map_that_is_swapped_is_never_missing_or_mixed() {
    let Some(node) = Node::new(2).await else {
        return;
    };
    let (map, out) = (node.host_dir("map"), node.host_dir("out"));
    swap(&map, 0);
    for key in KEYS {
        symlink(format!("..data/{key}"), map.join(key)).unwrap();
    }
    let pod = node.sharing_sandbox("swap").await;
    let mounts = vec![host(&map, "/map", true), host(&out, "/out", false)];
    // A look at one directory has all keys, of one version; where it was taken away
    // meanwhile there is a new one. A key by its own path is there at any time.
    let script = "while [ ! -e /out/stop ]; do
        d=/map/$(readlink /map/..data)
        if set=$(cat $d/a $d/b $d/c 2>/dev/null); then echo \"$set\"; echo end
        elif [ $d = /map/$(readlink /map/..data) ]; then echo missing; fi
        for key in a b c; do cat /map/$key 2>&1 || echo missing; echo end; done
        done >/out/seen";
    let mut spec = node.container("reader", script);
    spec.mounts = mounts;
    let id = node.start(&pod, spec).await;
    let seen = || fs::read_to_string(out.join("seen")).unwrap_or_default();
    let mut times = Vec::new();
    for version in 1..=SWAPS {
        swap(&map, version);
        // The new version comes, and soon.
        let started = std::time::Instant::now();
        let line = line(version);
        while !seen().contains(&line) {
            assert!(
                started.elapsed() < PATIENCE,
                "version {version} is not seen"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        times.push(started.elapsed());
    }
    // Nothing takes a directory away any more.
    let all = line(SWAPS).repeat(KEYS.len());
    let started = std::time::Instant::now();
    while !seen().contains(&all) {
        assert!(started.elapsed() < PATIENCE, "not all keys are seen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    fs::write(out.join("stop"), "").unwrap();
    assert_eq!(node.exited(&id).await.exit.unwrap().code, 0);
    let seen = seen();
    let known: Vec<String> = (0..=SWAPS).map(line).collect();
    let (mut whole, mut single) = (0, 0);
    for look in seen.split_terminator("end\n") {
        let first = look.split_inclusive('\n').next().unwrap_or_default();
        assert!(known.iter().any(|line| line == first), "{look:?}");
        if look == first {
            single += 1;
        } else {
            assert_eq!(look, first.repeat(KEYS.len()));
            whole += 1;
        }
    }
    assert!(whole > 0 && single > 0);
    times.sort_unstable();
    println!(
        "{SWAPS} swaps, {whole} looks at all keys, {single} at one; seen after {:?} \
         (median), {:?} (most)",
        times[times.len() / 2],
        times[times.len() - 1],
    );
}

/// What a version of the map holds.
fn line(version: u32) -> String {
    format!("{}\n", version.to_string().repeat(200))
}

/// As the kubelet does it: a new directory, a link renamed over the old one, the
/// old directory removed.
fn swap(map: &Path, version: u32) {
    let new = format!("..v{version}");
    fs::create_dir(map.join(&new)).unwrap();
    for key in KEYS {
        fs::write(map.join(&new).join(key), line(version)).unwrap();
    }
    symlink(&new, map.join("..data_tmp")).unwrap();
    fs::rename(map.join("..data_tmp"), map.join("..data")).unwrap();
    if let Some(old) = version.checked_sub(1) {
        fs::remove_dir_all(map.join(format!("..v{old}"))).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sandbox_without_the_device_says_so() {
    let Some(node) = Node::new(2).await else {
        return;
    };
    let pod = node.run_sandbox("plain").await;
    let spec = node.idle("c", vec![host(Path::new("/tmp"), "/d", false)]);
    let error = node
        .sandboxes
        .create_container(&pod, spec)
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            SandboxError::Invalid {
                field: "mounts",
                ..
            }
        ),
        "{error}"
    );
}
