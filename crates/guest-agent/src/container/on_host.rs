//! Whole containers on this host: what CreateContainer forks is run in a mount
//! namespace of its own with a directory for an image, without VM and cgroup.
//! Each test runs itself again as a process for that, as root.

mod in_user_namespace;

use super::handover::{Handover, Message, Received};
use super::mounts::Source;
use super::request::{self, Checked};
use super::rootfs::Sources;
use super::{init, stdio};
use crate::sys::process;
use crate::users::Users;
use crate::{fs_mount, layout};
use guest_api::proto::{
    Capabilities, CreateContainerRequest, Device, DiskExtent, Mount, PathRules, Process, User,
};
use nix::sched::CloneFlags;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountAttrFlags as Attr, MountPropagationFlags, mount_change};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::rc::Rc;
use std::{env, fs};

const INNER: &str = "SPHERULE_TEST_IN_OWN_MOUNTS";
const BUSYBOX: &str = "/bin/busybox";
const IMAGE: &str = "/run/image";
const VOLUME: &str = "/run/volume";

/// Runs `body` in a process and a mount namespace of its own, where the agent's
/// directories are.
fn in_own_mounts(test: &str, body: impl FnOnce()) {
    if env::var_os(INNER).is_none() {
        assert!(
            rustix::process::geteuid().is_root() && fs::exists(BUSYBOX).unwrap(),
            "this test wants root and busybox-static"
        );
        let name = format!("container::on_host::{test}");
        let run = Command::new(env::current_exe().unwrap())
            .args(["--exact", &name, "--nocapture", "--test-threads=1"])
            .env(INNER, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&run.stdout);
        let complained = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "{said}\n{complained}");
        assert!(said.contains("1 passed"), "{said}");
        return;
    }
    let busybox = fs::read(BUSYBOX).unwrap();
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).unwrap();
    let run = fs_mount::new("tmpfs", &[("mode", "0755")], Attr::empty()).unwrap();
    fs_mount::attach_at(run, layout::RUN).unwrap();
    for dir in [layout::NEW_ROOT, layout::SHM, layout::SHARES, VOLUME] {
        fs::create_dir(dir).unwrap();
    }
    make_image(&busybox);
    body();
}

fn make_image(busybox: &[u8]) {
    for dir in ["bin", "etc", "data", "real"] {
        fs::create_dir_all(format!("{IMAGE}/{dir}")).unwrap();
    }
    let file = format!("{IMAGE}/bin/busybox");
    fs::write(&file, busybox).unwrap();
    rustix::fs::chmod(&file, Mode::from_raw_mode(0o755)).unwrap();
    for name in [
        "sh", "cat", "id", "ls", "grep", "touch", "mount", "stat", "umask", "sleep", "hostname",
        "ip", "umount", "mknod", "chown", "mkdir",
    ] {
        symlink("busybox", format!("{IMAGE}/bin/{name}")).unwrap();
    }
    fs::write(
        format!("{IMAGE}/etc/passwd"),
        "root:x:0:0::/:\napp:x:10:11::/:\n",
    )
    .unwrap();
    fs::write(format!("{IMAGE}/etc/group"), "app:x:11:\nextra:x:12:app\n").unwrap();
    fs::write(format!("{IMAGE}/data/secret"), "secret").unwrap();
    fs::write(format!("{IMAGE}/file"), "").unwrap();
    symlink("/real", format!("{IMAGE}/link")).unwrap();
}

/// A container that runs `script`.
fn shell(script: &str) -> CreateContainerRequest {
    CreateContainerRequest {
        container_id: "c".to_owned(),
        image: Some(DiskExtent {
            device: "vda".to_owned(),
            offset: 0,
            length: 4096,
        }),
        process: Some(Process {
            args: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            ..Process::default()
        }),
        ..CreateContainerRequest::default()
    }
}

fn process(request: &mut CreateContainerRequest) -> &mut Process {
    request.process.as_mut().unwrap()
}

/// What the container printed, or why it was not made or not started.
fn run(request: CreateContainerRequest, mounts: Vec<Source>) -> Result<String, String> {
    run_as(Rc::new(Users::Guest), request, mounts)
}

fn run_as(
    users: Rc<Users>,
    request: CreateContainerRequest,
    mounts: Vec<Source>,
) -> Result<String, String> {
    let checked = request::check(request).map_err(|e| e.to_string())?;
    let layer = format!("{}/layer", layout::RUN);
    let _ = fs::remove_dir_all(&layer);
    super::layer::create(&layer, IMAGE, &users, 0).map_err(|e| e.to_string())?;
    let sources = Sources {
        users,
        image: IMAGE.to_owned(),
        layer,
        mounts,
        devices: checked.request.devices.clone(),
        hosts: false,
        resolv_conf: false,
    };
    run_checked(&checked, &sources)
}

fn run_checked(checked: &Checked, sources: &Sources) -> Result<String, String> {
    let (ours, theirs) = stdio::create(false, false).unwrap();
    let (agent, child) = Handover::pair().unwrap();
    let mut keep = theirs.fds();
    keep.push(child.fd());
    keep.extend(sources.users.fd());
    let flags = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID;
    let first = || init::run(checked, sources, &theirs, &child);
    let pid = process::fork_into(flags, None, &keep, first).unwrap();
    drop(keep);
    drop((theirs, child));
    let mut failure = None;
    loop {
        let _ = poll(
            &mut [PollFd::from_borrowed_fd(agent.fd(), PollFlags::IN)],
            None,
        );
        match agent.receive() {
            Received::Message(Message::Ready(_), _) => agent.start().unwrap(),
            Received::Message(Message::Failed(error), _) => failure = Some(error.message),
            Received::Nothing => {}
            Received::Closed => break,
        }
    }
    let mut said = String::new();
    for output in [ours.stdout, ours.stderr].into_iter().flatten() {
        rustix::io::ioctl_fionbio(&output, false).unwrap();
        fs::File::from(output).read_to_string(&mut said).unwrap();
    }
    let waited = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
    let status = waited.unwrap().unwrap().1;
    match failure {
        Some(failure) => Err(failure),
        None => Ok(format!(
            "{said}{}",
            super::exit_status(status, false, 0).code
        )),
    }
}

fn volume(destination: &str) -> Mount {
    Mount {
        volume: "v".to_owned(),
        destination: destination.to_owned(),
        ..Mount::default()
    }
}

fn at_volume() -> Source {
    Source::Volume(VOLUME.to_owned())
}

fn filter(instructions: &[(u16, u8, u8, u32)]) -> Vec<u8> {
    let bytes = |(code, jt, jf, k): &(u16, u8, u8, u32)| {
        let mut bytes = code.to_le_bytes().to_vec();
        bytes.extend([*jt, *jf]);
        bytes.extend(k.to_le_bytes());
        bytes
    };
    instructions.iter().flat_map(bytes).collect()
}

/// A filter that lets these calls fail with EDOM (33) and all else pass.
fn refusing(numbers: &[libc::c_long]) -> Vec<u8> {
    let mut program = vec![(0x20, 0, 0, 0)];
    let count = u8::try_from(numbers.len()).unwrap();
    for (i, number) in (1..=count).zip(numbers) {
        program.push((0x15, count - i + 1, 0, u32::try_from(*number).unwrap()));
    }
    program.push((0x06, 0, 0, 0x7fff_0000));
    program.push((0x06, 0, 0, 0x0005_0000 | 33));
    filter(&program)
}

#[test]
fn rules_hide_and_protect_exactly_the_paths_given() {
    in_own_mounts("rules_hide_and_protect_exactly_the_paths_given", || {
        let script = "cat /data/secret; ls /data; touch /real/x; touch /proc/sys/vm/swappiness && \
            ls /proc/self >/dev/null && stat -c %t,%T /file";
        let mut request = shell(script);
        let rules = |masked: &[&str], read_only: &[&str]| PathRules {
            masked: masked.iter().map(|p| (*p).to_owned()).collect(),
            read_only: read_only.iter().map(|p| (*p).to_owned()).collect(),
        };
        request.paths = Some(rules(
            &["/data", "/file", "/etc/passwd", "/not/there"],
            &["/link"],
        ));
        let said = run(request, Vec::new()).unwrap();
        assert!(!said.contains("secret\n"), "{said}");
        assert!(said.contains("'/data/secret': No such file"), "{said}");
        // The link's target is what is protected.
        assert!(said.contains("/real/x: Read-only file system"), "{said}");
        // Nothing that the rules do not name: /proc/sys is as the kernel has it.
        assert!(!said.contains("swappiness"), "{said}");
        assert!(said.contains("1,3\n"), "{said}");
    });
}

#[test]
fn without_rules_the_kernels_files_are_protected() {
    in_own_mounts("without_rules_the_kernels_files_are_protected", || {
        let script =
            "echo 10 > /proc/sys/vm/swappiness; stat -c %t,%T /proc/timer_list; touch /sys/x";
        let said = run(shell(script), Vec::new()).unwrap();
        assert!(said.contains("swappiness: Read-only file system"), "{said}");
        assert!(said.starts_with("1,3\n"), "{said}");
        assert!(said.contains("/sys/x: Read-only file system"), "{said}");
    });
}

#[test]
fn a_read_only_root_leaves_volumes_writable() {
    in_own_mounts("a_read_only_root_leaves_volumes_writable", || {
        let mut request = shell("touch /x /v/x /link/x /dev/shm/x; ls /v /real");
        request.readonly_rootfs = true;
        // The second goes to where the image's link leads, the third is deeper.
        request.mounts = vec![volume("/v/deep"), volume("/link"), volume("/v")];
        request.mounts[0].read_only = true;
        let sources = (0..3).map(|_| at_volume()).collect();
        fs::create_dir(format!("{VOLUME}/deep")).unwrap();
        let said = run(request, sources).unwrap();
        assert!(said.contains("touch: /x: Read-only file system"), "{said}");
        assert!(!said.contains("/v/x: "), "{said}");
        assert!(said.contains("/real:\ndeep\nx\n"), "{said}");
        assert!(fs::exists(format!("{VOLUME}/x")).unwrap());
    });
}

#[test]
fn images_are_mounted_read_only_and_not_left() {
    in_own_mounts("images_are_mounted_read_only_and_not_left", || {
        fs::create_dir_all("/run/other/sub").unwrap();
        fs::write("/run/other/sub/file", "from the image").unwrap();
        symlink("/sub", "/run/other/absolute").unwrap();
        symlink("../../..", "/run/other/up").unwrap();
        let image = |destination: &str, sub_path: &str| Mount {
            volume: String::new(),
            image: shell("").image,
            sub_path: sub_path.to_owned(),
            ..volume(destination)
        };
        let source = || Source::Image("/run/other".to_owned());
        let mut request = shell("cat /i/file /f; ls /top; touch /i/x /top/x");
        request.mounts = vec![
            image("/i", "absolute"),
            image("/f", "sub/file"),
            image("/top", "up"),
        ];
        let said = run(request, (0..3).map(|_| source()).collect()).unwrap();
        assert!(said.starts_with("from the imagefrom the image"), "{said}");
        assert!(said.contains("absolute\nsub\nup\n"), "{said}");
        assert!(said.contains("/i/x: Read-only file system"), "{said}");
        assert!(said.contains("/top/x: Read-only file system"), "{said}");
        let mut request = shell("true");
        request.mounts = vec![image("/i", "missing")];
        let error = run(request, vec![source()]).unwrap_err();
        assert!(error.contains("\"missing\" of the image"), "{error}");
    });
}

#[test]
fn volumes_of_the_image_show_it_and_stay_writable() {
    in_own_mounts("volumes_of_the_image_show_it_and_stay_writable", || {
        rustix::fs::chmod(format!("{IMAGE}/data"), Mode::from_raw_mode(0o1777)).unwrap();
        let script = "cat /data/secret; touch /data/x /new/sub/y /link/z /v/w /root; \
            ls /data /new/sub /real; stat -c %a /data";
        let mut request = shell(script);
        request.readonly_rootfs = true;
        let volumes = ["/data", "/new/sub", "/link", "/v"];
        request.image_volumes = volumes.map(str::to_owned).to_vec();
        // What the request mounts there covers it.
        request.mounts = vec![volume("/v")];
        let said = run(request, vec![at_volume()]).unwrap();
        assert!(said.contains("touch: /root: Read-only"), "{said}");
        let listed = "secret/data:\nsecret\nx\n\n/new/sub:\ny\n\n/real:\nz\n1777\n";
        assert!(said.starts_with(listed), "{said}");
        assert!(fs::exists(format!("{VOLUME}/w")).unwrap());
        // The image is as it was.
        assert!(!fs::exists(format!("{IMAGE}/data/x")).unwrap());

        for (path, word) in [("/file", "/file"), ("data", "absolute"), ("/", "root")] {
            let mut request = shell("true");
            request.image_volumes = vec![path.to_owned()];
            let error = run(request, Vec::new()).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    });
}

#[test]
fn shares_are_bound_as_files_and_directories() {
    in_own_mounts("shares_are_bound_as_files_and_directories", || {
        fs::create_dir_all(format!("{}/dir/sub", layout::SHARES)).unwrap();
        fs::write(format!("{}/file", layout::SHARES), "a file").unwrap();
        let inner = fs_mount::new("tmpfs", &[("mode", "0755")], Attr::empty()).unwrap();
        fs_mount::attach_at(inner, &format!("{}/dir/sub", layout::SHARES)).unwrap();
        symlink("/etc", format!("{}/link", layout::SHARES)).unwrap();
        let share = |name: &str, destination: &str, read_only| Mount {
            volume: String::new(),
            share: name.to_owned(),
            read_only,
            ..volume(destination)
        };
        let mut request = shell("cat /etc/one; touch /d/x /d/sub/x /r/x /r/sub/x");
        request.mounts = vec![
            share("file", "/etc/one", true),
            share("dir", "/d", false),
            share("dir", "/r", true),
        ];
        let said = run(request, (0..3).map(|_| Source::Share).collect()).unwrap();
        assert!(said.starts_with("a file"), "{said}");
        assert!(!said.contains("/d/"), "{said}");
        assert!(said.contains("/r/x: Read-only file system"), "{said}");
        assert!(said.contains("/r/sub/x: Read-only file system"), "{said}");
        for name in ["link", "missing"] {
            let mut request = shell("true");
            request.mounts = vec![share(name, "/d", false)];
            let error = run(request, vec![Source::Share]).unwrap_err();
            assert!(error.contains(&format!("the share {name}")), "{error}");
        }
    });
}

#[test]
fn later_mounts_in_a_share_come_in_where_wanted() {
    in_own_mounts("later_mounts_in_a_share_come_in_where_wanted", || {
        let top = fs_mount::new("tmpfs", &[("mode", "0755")], Attr::empty()).unwrap();
        fs_mount::attach_at(top, layout::SHARES).unwrap();
        mount_change(layout::SHARES, MountPropagationFlags::SHARED).unwrap();
        for dir in ["dir", "dir/sub", "flag"] {
            fs::create_dir(format!("{}/{dir}", layout::SHARES)).unwrap();
        }
        let share = |name: &str, destination: &str, host_to_container| Mount {
            volume: String::new(),
            share: name.to_owned(),
            host_to_container,
            ..volume(destination)
        };
        // Says when it runs, waits for the mount, then looks.
        let script = "touch /flag/up; until [ -e /flag/done ]; do sleep 0.01; done; \
            ls /slave/sub; ls /private/sub";
        let mut request = shell(script);
        request.mounts = vec![
            share("dir", "/slave", true),
            share("dir", "/private", false),
            share("flag", "/flag", false),
        ];
        let flags = format!("{}/flag", layout::SHARES);
        // A process beside, in these mounts, that mounts in time.
        let helper = process::fork_into(CloneFlags::empty(), None, &[], || {
            while !fs::exists(format!("{flags}/up")).unwrap_or(false) {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            let Ok(new) = fs_mount::new("tmpfs", &[("mode", "0755")], Attr::empty()) else {
                return 1;
            };
            let sub = format!("{}/dir/sub", layout::SHARES);
            let mounted = fs_mount::attach_at(new, &sub).is_ok()
                && fs::write(format!("{sub}/new"), "").is_ok()
                && fs::write(format!("{flags}/done"), "").is_ok();
            i32::from(!mounted)
        })
        .unwrap();
        let said = run(request, (0..3).map(|_| Source::Share).collect()).unwrap();
        assert_eq!(said, "new\n0");
        let _ = rustix::process::waitpid(Some(helper), rustix::process::WaitOptions::empty());
    });
}

#[test]
fn only_requested_devices_of_the_guest_are_there() {
    in_own_mounts("only_requested_devices_of_the_guest_are_there", || {
        let device = |path: &str, destination: &str| Device {
            path: path.to_owned(),
            destination: destination.to_owned(),
            ..Device::default()
        };
        let mut request = shell("stat -c %t,%T /dev/x/y; cat /dev/x/y; ls /dev/kmsg");
        request.devices = vec![device("/dev/null", "/dev/x/y")];
        let said = run(request, Vec::new()).unwrap();
        assert!(said.starts_with("1,3\n"), "{said}");
        assert!(said.contains("/dev/kmsg: No such file"), "{said}");
        for path in ["/dev/shm", "/dev/fd", "/dev/not/there"] {
            let mut request = shell("true");
            request.devices = vec![device(path, "/dev/x")];
            let error = run(request, Vec::new()).unwrap_err();
            assert!(error.contains(path), "{error}");
        }
    });
}

#[test]
fn a_read_only_device_is_not_written_even_by_root() {
    in_own_mounts("a_read_only_device_is_not_written_even_by_root", || {
        let dir = format!("{}/cgroup", layout::RUN);
        let hierarchy = fs_mount::new("cgroup2", &[], Attr::empty()).unwrap();
        fs_mount::attach_at(hierarchy, &dir).unwrap();
        let path = format!("{dir}/spherule-test-{}", std::process::id());
        fs::create_dir(&path).unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let cgroup = rustix::fs::open(&path, flags, Mode::empty()).unwrap();
        let device = |path: &str, read_only| Device {
            path: path.to_owned(),
            read_only,
            ..Device::default()
        };
        let wanted = [
            device("/dev/zero", true),
            device("/dev/full", true),
            // Under another name for writing, too.
            device("/dev/full", false),
        ];
        super::devices::forbid_writing(&wanted, cgroup.as_fd()).unwrap();
        let opens = |path: &str, write: bool| {
            let opened = fs::File::options().read(!write).write(write).open(path);
            opened.map_err(|e| e.raw_os_error())
        };
        let inside = || {
            let refused = opens("/dev/zero", true).err() == Some(Some(libc::EPERM));
            let rest = opens("/dev/zero", false).is_ok()
                && opens("/dev/full", true).is_ok()
                && opens("/dev/null", true).is_ok();
            i32::from(!refused) + 2 * i32::from(!rest)
        };
        let flags = CloneFlags::empty();
        let pid = process::fork_into(flags, Some(cgroup.as_fd()), &[], inside).unwrap();
        let waited = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
        let status = waited.unwrap().unwrap().1;
        fs::remove_dir(&path).unwrap();
        assert_eq!(status.exit_status(), Some(0));
    });
}

#[test]
fn another_user_keeps_ambient_capabilities_and_no_others() {
    in_own_mounts(
        "another_user_keeps_ambient_capabilities_and_no_others",
        || {
            let script = "id; grep -E '^(Cap|NoNewPrivs)' /proc/self/status";
            let caps = |list: &[&str]| list.iter().map(|c| (*c).to_owned()).collect::<Vec<_>>();
            let with = |ambient: &[&str], strict_groups, no_new_privileges| {
                let mut request = shell(script);
                let all = caps(&["CAP_CHOWN", "CAP_NET_BIND_SERVICE"]);
                *process(&mut request) = Process {
                    user: Some(User {
                        name: "app".to_owned(),
                        strict_groups,
                        ..User::default()
                    }),
                    capabilities: Some(Capabilities {
                        bounding: all.clone(),
                        effective: all.clone(),
                        permitted: all,
                        inheritable: caps(ambient),
                        ambient: caps(ambient),
                    }),
                    no_new_privileges,
                    ..process(&mut request).clone()
                };
                run(request, Vec::new()).unwrap()
            };
            // CAP_NET_BIND_SERVICE is number 10.
            let said = with(&["CAP_NET_BIND_SERVICE"], false, false);
            assert!(
                said.contains("uid=10(app) gid=11(app) groups=11(app),12(extra)"),
                "{said}"
            );
            for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
                assert!(
                    said.contains(&format!("{set}:\t0000000000000400")),
                    "{said}"
                );
            }
            assert!(said.contains("CapBnd:\t0000000000000401"), "{said}");
            assert!(said.contains("NoNewPrivs:\t0"), "{said}");
            let said = with(&[], true, true);
            assert!(said.contains("gid=11(app) groups=11(app)\n"), "{said}");
            assert!(said.contains("CapEff:\t0000000000000000"), "{said}");
            assert!(said.contains("NoNewPrivs:\t1"), "{said}");
        },
    );
}

#[test]
fn a_seccomp_filter_holds_for_the_program_with_and_without_new_privileges() {
    let name = "a_seccomp_filter_holds_for_the_program_with_and_without_new_privileges";
    in_own_mounts(name, || {
        let script = "grep -E '^(CapEff|Seccomp|NoNewPrivs):' /proc/self/status; umask 077 || true; \
            mkdir /x";
        for no_new_privileges in [false, true] {
            for user in ["", "app"] {
                let mut request = shell(script);
                let process = process(&mut request);
                process.no_new_privileges = no_new_privileges;
                process.user = Some(User {
                    name: user.to_owned(),
                    ..User::default()
                });
                // What only the agent calls on the way is refused as well.
                process.seccomp = refusing(&[
                    libc::SYS_mkdir,
                    libc::SYS_mkdirat,
                    libc::SYS_setgroups,
                    libc::SYS_prctl,
                    libc::SYS_close_range,
                    libc::SYS_rt_sigaction,
                ]);
                let said = run(request, Vec::new()).unwrap();
                assert!(said.contains("Seccomp:\t2"), "{said}");
                assert!(said.contains("CapEff:\t0000000000000000"), "{said}");
                let want = format!("NoNewPrivs:\t{}", u8::from(no_new_privileges));
                assert!(said.contains(&want), "{said}");
                assert!(
                    !said.contains("mkdir: can't create directory '/x': Permission"),
                    "{said}"
                );
            }
        }
    });
}

#[test]
fn a_filter_that_cannot_be_loaded_names_its_field() {
    in_own_mounts("a_filter_that_cannot_be_loaded_names_its_field", || {
        let mut request = shell("true");
        process(&mut request).seccomp = filter(&[(0x20, 0, 0, 0)]);
        let error = run(request, Vec::new()).unwrap_err();
        assert!(error.contains("no valid program"), "{error}");
        // capset is what the agent itself still needs.
        let mut request = shell("true");
        process(&mut request).seccomp = refusing(&[libc::SYS_capset]);
        let error = run(request, Vec::new()).unwrap_err();
        assert!(error.contains("let the profile allow capset"), "{error}");
    });
}

#[test]
fn mounts_that_do_not_fit_say_so() {
    in_own_mounts("mounts_that_do_not_fit_say_so", || {
        let mut request = shell("true");
        request.mounts = vec![volume("/etc/passwd")];
        let error = run(request, vec![at_volume()]).unwrap_err();
        assert!(
            error.contains("a file and a directory do not fit"),
            "{error}"
        );
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let top = rustix::fs::open(VOLUME, flags, Mode::empty()).unwrap();
        rustix::fs::symlinkat("/etc", top.as_fd(), "out").unwrap();
        let mut request = shell("true");
        request.mounts = vec![volume("/v")];
        request.mounts[0].sub_path = "out".to_owned();
        let error = run(request, vec![at_volume()]).unwrap_err();
        assert!(error.contains("leads out"), "{error}");
    });
}
