//! The daemon is killed with SIGKILL at a step; its next run has the record from
//! before that step, and has to leave nothing.

use crate::host::{Host, attach, lines, on_host, request};
use pod_network::{Network, NetworkConfig, NetworkRecord, Phase};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const SCENE: &str = "POD_NETWORK_TEST_SCENE";

/// A network of the real bridge behind a gate: where a file says so, the plugin
/// stops before or after its work, until it is killed.
fn gated_network(host: &Host) -> Network {
    let dir = host.dir.path().display();
    host.write_plugin(
        "gate",
        &format!(
            r#"stop() {{ [ -e {dir}/$1-$CNI_COMMAND ] && {{ echo $$ > {dir}/pid.new; mv {dir}/pid.new {dir}/pid; exec sleep 1000; }}; }}
stop before
out=$(/usr/lib/cni/bridge); code=$?
stop after
printf '%s' "$out"; exit $code"#
        ),
    );
    let list = json!({"cniVersion": "1.0.0", "name": "spherule", "plugins": [
        {"type": "gate", "bridge": "br0", "isDefaultGateway": true, "ipMasq": true, "ipam": {
            "type": "host-local", "dataDir": host.leases(),
            "ranges": [[{"subnet": "10.7.0.0/24"}], [{"subnet": "fd07::/64"}]]}},
        {"type": "portmap", "capabilities": {"portMappings": true}},
    ]});
    host.write_list("10-net.conflist", &list.to_string());
    host.network()
}

/// The daemon of these tests: attaches or removes as the scene says, and waits.
#[test]
#[ignore = "run as a process of its own by the tests below"]
fn daemon() {
    let scene = PathBuf::from(std::env::var_os(SCENE).expect("a scene"));
    let mut config = NetworkConfig::new(scene.join("run"));
    config.netns_dir = scene.join("run/netns");
    config.conf_dir = scene.join("net.d");
    config.plugin_dirs = vec![scene.join("bin"), "/usr/lib/cni".into()];
    let network = Network::new(config).unwrap();
    let mut record: NetworkRecord =
        serde_json::from_slice(&fs::read(scene.join("record")).unwrap()).unwrap();
    if record.phase == Phase::Planned {
        let attachment = network.attach(&mut record).unwrap();
        drop(attachment);
    } else {
        network.remove(&record).unwrap();
    }
    fs::write(scene.join("pid"), "done").unwrap();
    loop {
        std::thread::park();
    }
}

/// Runs the daemon until a plugin stops at the gate or it is done, and kills it;
/// the pid of the plugin, or "done".
fn run_and_kill(scene: &Path, record: &NetworkRecord) -> String {
    fs::write(scene.join("record"), serde_json::to_vec(record).unwrap()).unwrap();
    let _ = fs::remove_file(scene.join("pid"));
    let mut daemon = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed::daemon", "--ignored"])
        .env(SCENE, scene)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let reached = loop {
        if let Some(line) = lines(&scene.join("pid")).first() {
            break line.clone();
        }
        if let Some(status) = daemon.try_wait().unwrap() {
            panic!("the daemon ended by itself: {status}");
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    reached
}

/// Kills the daemon while it attaches (`gate` ADD) or removes (`gate` DEL), lets
/// the next run remove the pod, and compares what is left.
fn killed_at(gate: Option<&str>, removing: bool, swept: bool) {
    on_host(|host| {
        let network = gated_network(host);
        let wish = |id: &str| {
            let mut wish = request(id);
            wish.capabilities.port_mappings = vec![pod_network::PortMapping {
                host_port: 9000,
                container_port: 80,
                protocol: "tcp".into(),
                host_ip: None,
            }];
            wish
        };
        let (record, attachment) = attach(&network, wish("warm"));
        drop(attachment);
        network.remove(&record).unwrap();
        let before = host.remains();

        let record = if removing {
            attach(&network, wish("a")).0
        } else {
            network.plan(wish("a")).unwrap()
        };
        let scene = host.dir.path();
        if let Some(gate) = gate {
            fs::write(scene.join(gate), "").unwrap();
        }
        let reached = run_and_kill(scene, &record);
        assert_eq!(reached == "done", gate.is_none());
        if let Some(gate) = gate {
            fs::remove_file(scene.join(gate)).unwrap();
            assert!(alive(&reached), "the plugin outlives the daemon");
        }
        if !(removing && gate.is_none()) {
            assert_ne!(host.remains(), before, "there is something to remove");
        }

        let network = host.network();
        if swept {
            assert_eq!(network.strays(&[]).unwrap(), ["a"]);
            network.remove_stray("a").unwrap();
        } else {
            network.remove(&record).unwrap();
        }
        assert!(!alive(&reached), "the plugin has been ended");
        assert_eq!(host.remains(), before);
        network.remove(&record).unwrap();
        assert!(network.strays(&[]).unwrap().is_empty());
    });
}

fn alive(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn between_namespace_and_add() {
    killed_at(Some("before-ADD"), false, false);
}

#[test]
fn at_the_end_of_add() {
    killed_at(Some("after-ADD"), false, false);
}

#[test]
fn between_add_and_the_storing_of_the_result() {
    killed_at(None, false, false);
}

#[test]
fn before_del() {
    killed_at(Some("before-DEL"), true, false);
}

#[test]
fn at_the_end_of_del() {
    killed_at(Some("after-DEL"), true, false);
}

#[test]
fn after_removal_before_the_record_goes() {
    killed_at(None, true, false);
}

#[test]
fn without_any_record_the_sweep_removes_it() {
    killed_at(Some("after-ADD"), false, true);
    killed_at(None, false, true);
}

#[test]
fn after_a_reboot_the_addresses_are_given_back() {
    rebooted(|_| ());
}

#[test]
fn after_a_reboot_amid_add_the_addresses_are_given_back() {
    // All that was stored is the plan, by an earlier start of the host.
    rebooted(|record| {
        record.phase = Phase::Planned;
        record.boot = "another".into();
        record.result = None;
        record.nics.clear();
    });
}

fn rebooted(stored: fn(&mut NetworkRecord)) {
    on_host(move |host| {
        let network = gated_network(host);
        let (mut record, attachment) = attach(&network, request("a"));
        drop(attachment);
        stored(&mut record);
        let leases = || {
            fs::read_dir(host.leases().join("spherule"))
                .unwrap()
                .count()
        };
        let with_pod = leases();
        // What a reboot takes with it.
        rustix::mount::unmount(&record.netns, rustix::mount::UnmountFlags::DETACH).unwrap();
        fs::remove_dir_all(host.dir.path().join("run")).unwrap();
        let network = host.network();
        assert!(network.adopt(&record).is_err());
        network.remove(&record).unwrap();
        assert_eq!(leases(), with_pod - 2);
    });
}
