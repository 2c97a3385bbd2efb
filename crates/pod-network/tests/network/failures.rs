//! Plugins that fail, in every way that plugins do: what is said, and that
//! nothing stays.

use crate::host::{Host, attach, lines, on_host, request};
use pod_network::{
    Capabilities, Collected, Network, NetworkError, NotReady, Phase, PluginFailure, PortMapping,
    chain_text,
};
use serde_json::{Value, json};
use std::time::Duration;

const VERSION: &str = r#"[ $CNI_COMMAND = VERSION ] && echo '{"cniVersion":"1.1.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}' && exit 0"#;

/// A network of the real bridge and then the plugin `stub`.
fn bridge_and_stub(host: &Host, script: &str) -> Network {
    host.write_plugin("stub", &format!("{VERSION}\n{script}"));
    let leases = host.leases();
    let list = json!({"cniVersion": "1.0.0", "name": "spherule", "plugins": [
        {"type": "bridge", "bridge": "br0", "isDefaultGateway": true, "ipMasq": true, "ipam": {
            "type": "host-local", "dataDir": leases, "ranges": [[{"subnet": "10.7.0.0/24"}]]}},
        {"type": "stub"},
    ]});
    host.write_list("10-net.conflist", &list.to_string());
    host.network()
}

/// Attaches, which has to fail by the plugin; its failure and all of the text.
fn failure(network: &Network, id: &str) -> (PluginFailure, String) {
    let mut record = network.plan(request(id)).unwrap();
    let planned = record.clone();
    let error = network.attach(&mut record).expect_err("a failure");
    assert_eq!(record, planned, "the record is as it was planned");
    let text = chain_text(&error);
    assert!(
        text.contains("\"stub\"") && text.contains("\"spherule\""),
        "{text}"
    );
    match error {
        NetworkError::Plugin(error) => (error.failure, text),
        other => panic!("{other:?}"),
    }
}

/// What a host with the bridge, but without pods, has.
fn settled(host: &Host, network: &Network) -> Vec<String> {
    let (record, attachment) = attach(network, request("warm"));
    drop(attachment);
    network.remove(&record).unwrap();
    host.remains()
}

const PASS: &str = r#"echo '{"cniVersion":"1.0.0"}'"#;

fn fails_and_leaves_nothing(script: &str, check: impl FnOnce(&PluginFailure, &str) + Send) {
    on_host(|host| {
        let network = bridge_and_stub(host, PASS);
        let before = settled(host, &network);
        bridge_and_stub(host, &format!("[ $CNI_COMMAND = DEL ] && exit 0\n{script}"));
        let (failure, text) = failure(&network, "a");
        check(&failure, &text);
        assert_eq!(host.remains(), before);
    });
}

#[test]
fn an_error_in_json_is_told_in_the_plugin_s_words() {
    let script = r#"echo '{"cniVersion":"1.0.0","code":111,"msg":"no wire","details":"cut by a mouse"}'; exit 1"#;
    fails_and_leaves_nothing(script, |failure, text| {
        assert!(matches!(failure, PluginFailure::Reported { code: 111, .. }));
        assert!(text.contains("no wire: cut by a mouse"), "{text}");
    });
}

#[test]
fn a_crash_is_told_with_what_it_said() {
    fails_and_leaves_nothing("echo oh dear >&2; kill -SEGV $$", |failure, text| {
        assert!(matches!(failure, PluginFailure::Killed { signal: 11, .. }));
        assert!(text.contains("oh dear"), "{text}");
    });
    fails_and_leaves_nothing("echo oh dear >&2; exit 3", |failure, text| {
        assert!(matches!(failure, PluginFailure::Exited { code: 3, .. }));
        assert!(text.contains("oh dear"), "{text}");
    });
}

#[test]
fn nonsense_and_silence_are_no_results() {
    fails_and_leaves_nothing("echo hello", |failure, text| {
        assert!(matches!(failure, PluginFailure::Result(_)));
        assert!(text.contains("hello"), "{text}");
    });
    fails_and_leaves_nothing("exit 0", |failure, text| {
        assert!(matches!(failure, PluginFailure::Result(_)));
        assert!(text.contains("nothing"), "{text}");
    });
}

#[test]
fn an_endless_answer_is_cut_off() {
    fails_and_leaves_nothing("exec yes", |failure, _| {
        assert!(matches!(failure, PluginFailure::TooMuch));
    });
}

#[test]
fn a_plugin_that_hangs_is_killed_with_what_it_started() {
    on_host(|host| {
        let before = settled(host, &bridge_and_stub(host, PASS));
        let pids = host.dir.path().join("pids");
        bridge_and_stub(
            host,
            &format!(
                "[ $CNI_COMMAND = DEL ] && exit 0\nsleep 1000 & echo $! >> {0}; echo $$ >> {0}; wait",
                pids.display()
            ),
        );
        let mut config = host.config.clone();
        config.plugin_timeout = Duration::from_secs(2);
        let network = Network::new(config).unwrap();
        let (failure, text) = failure(&network, "a");
        assert!(matches!(failure, PluginFailure::TimedOut { .. }), "{text}");
        assert_eq!(host.remains(), before);
        let pids = lines(&pids);
        assert_eq!(pids.len(), 2);
        for pid in pids {
            assert!(ended(&pid), "{pid} is still there");
        }
    });
}

/// Whether a process is gone, or dead and waiting for its parent.
fn ended(pid: &str) -> bool {
    for _ in 0..100 {
        match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) if !stat.contains(") Z ") => std::thread::sleep(Duration::from_millis(50)),
            _ => return true,
        }
    }
    false
}

#[test]
fn a_plugin_that_is_missing_is_named_before_and_after() {
    on_host(|host| {
        let network = bridge_and_stub(host, PASS);
        assert_eq!(network.status().unwrap().name, "spherule");
        let list = r#"{"cniVersion":"1.0.0","name":"n","type":"bridge","ipam":{"type":"nowhere"}}"#;
        host.write_list("00-first.conf", list);
        let text = chain_text(&network.status().unwrap_err());
        assert!(text.contains("no program \"nowhere\""), "{text}");
        std::fs::remove_file(host.config.conf_dir.join("00-first.conf")).unwrap();
        std::fs::remove_file(host.dir.path().join("bin/stub")).unwrap();
        let text = chain_text(&network.status().unwrap_err());
        assert!(text.contains("no program \"stub\""), "{text}");
        assert!(text.contains("/usr/lib/cni"), "{text}");
        // DEL needs it too, so that what the bridge made stays until it is back.
        let mut record = network.plan(request("a")).unwrap();
        let error = network.attach(&mut record).unwrap_err();
        assert!(matches!(error, NetworkError::NotUndone { .. }), "{error:?}");
        assert_eq!(record.phase, Phase::Removing);
        assert!(network.remove(&record).is_err());
        bridge_and_stub(host, PASS);
        network.remove(&record).unwrap();
        assert_eq!(host.remains(), settled(host, &network));
    });
}

#[test]
fn a_del_that_fails_once_is_done_by_the_next_removal() {
    on_host(|host| {
        let flag = host.dir.path().join("fail");
        let script = format!(
            r#"[ $CNI_COMMAND = DEL ] && rm {} 2>/dev/null && echo '{{"code":11,"msg":"not now"}}' && exit 1
            {PASS}"#,
            flag.display()
        );
        let network = bridge_and_stub(host, &script);
        let before = settled(host, &network);
        let (record, attachment) = attach(&network, request("a"));
        drop(attachment);
        std::fs::write(&flag, "").unwrap();
        let text = chain_text(&network.remove(&record).unwrap_err());
        assert!(
            text.contains("not now") && text.contains("try again later"),
            "{text}"
        );
        assert_ne!(host.remains(), before, "the pod's network is still there");
        network.remove(&record).unwrap();
        assert_eq!(host.remains(), before);
        network.remove(&record).unwrap();
    });
}

#[test]
fn del_is_by_the_configuration_that_add_was_by() {
    on_host(|host| {
        let network = bridge_and_stub(host, PASS);
        let before = settled(host, &network);
        let (record, attachment) = attach(&network, request("a"));
        drop(attachment);
        let other =
            json!({"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "nowhere"}]});
        host.write_list("10-net.conflist", &other.to_string());
        assert_eq!(network.plan(request("b")).unwrap().list.name, "other");
        network.remove(&record).unwrap();
        assert_eq!(host.remains(), before);
    });
}

#[test]
fn without_configuration_status_says_what_to_do() {
    on_host(|host| {
        let network = host.network();
        let error = network.status().unwrap_err();
        let text = chain_text(&error);
        assert!(matches!(error, NotReady::NoConfiguration { .. }));
        assert!(
            text.contains("spherule network init") && text.contains("net.d"),
            "{text}"
        );
        host.write_list("10-bad.conflist", "{}");
        let text = chain_text(&network.status().unwrap_err());
        assert!(
            text.contains("10-bad.conflist") && text.contains("plugins is missing"),
            "{text}"
        );
        assert!(matches!(
            network.plan(request("a")),
            Err(NetworkError::NotReady(_))
        ));
    });
}

#[test]
fn a_version_that_a_plugin_does_not_speak_is_told_with_those_it_does() {
    on_host(|host| {
        let network = host.network();
        host.write_plugin(
            "old",
            r#"echo '{"cniVersion":"0.4.0","supportedVersions":["0.3.1","0.4.0"]}'"#,
        );
        let list = json!({"cniVersion": "1.1.0", "name": "n", "plugins": [{"type": "old"}]});
        host.write_list("10-net.conflist", &list.to_string());
        let text = chain_text(&network.status().unwrap_err());
        assert!(text.contains("CNI 1.1.0, only 0.3.1, 0.4.0"), "{text}");
    });
}

/// A plugin that writes down what it is told, and makes an interface.
fn logging(host: &Host, name: &str) {
    let log = host.dir.path().join("log");
    host.write_plugin(
        name,
        &format!(
            r#"{VERSION}
input=$(cat)
version=$(printf %s "$input" | sed 's/.*"cniVersion":"\([0-9.]*\)".*/\1/')
printf '{{"plugin":"{name}","command":"%s","id":"%s","netns":"%s","ifname":"%s","args":"%s","input":%s}}\n' \
    "$CNI_COMMAND" "$CNI_CONTAINERID" "$CNI_NETNS" "$CNI_IFNAME" "$CNI_ARGS" "$input" >> {log}
case $CNI_COMMAND in
ADD) nsenter --net=$CNI_NETNS ip link add eth0 type veth peer name other 2>/dev/null
     printf '{{"cniVersion":"'$version'","interfaces":[{{"name":"eth0","sandbox":"%s"}}],"by":"{name}"}}' $CNI_NETNS ;;
esac"#,
            log = log.display()
        ),
    );
}

fn log(host: &Host) -> Vec<Value> {
    lines(&host.dir.path().join("log"))
        .iter()
        .map(|line| serde_json::from_str(line).expect(line))
        .collect()
}

#[test]
fn plugins_are_told_what_the_specification_says() {
    on_host(|host| {
        logging(host, "one");
        logging(host, "two");
        let list = json!({"cniVersion": "1.1.0", "name": "n", "plugins": [
            {"type": "one"}, {"type": "two", "capabilities": {"portMappings": true}}]});
        host.write_list("10-net.conflist", &list.to_string());
        let network = host.network();
        network.status().unwrap();
        let mut wish = request("a");
        wish.capabilities = Capabilities {
            port_mappings: vec![PortMapping {
                host_port: 80,
                container_port: 8080,
                protocol: "tcp".into(),
                host_ip: None,
            }],
            aliases: vec!["web".into()],
            ..Capabilities::default()
        };
        let (record, attachment) = attach(&network, wish);
        assert_eq!(record.ignored_capabilities(), ["aliases"]);
        network.check(&record).unwrap();
        drop(attachment);
        let known = std::slice::from_ref(&record);
        assert!(network.strays(known).unwrap().is_empty());
        let collected = network.collect_garbage(|| known.to_vec());
        assert!(matches!(&collected, Collected::Done(failed) if failed.is_empty()));
        network.remove(&record).unwrap();

        let log = log(host);
        let calls: Vec<String> = log
            .iter()
            .map(|c| {
                format!(
                    "{} {}",
                    c["command"].as_str().unwrap(),
                    c["plugin"].as_str().unwrap()
                )
            })
            .collect();
        assert_eq!(
            calls,
            [
                "STATUS one",
                "STATUS two",
                "ADD one",
                "ADD two",
                "CHECK one",
                "CHECK two",
                "GC one",
                "GC two",
                "DEL two",
                "DEL one",
            ]
        );
        let add = &log[3];
        assert_eq!(add["id"], "a");
        assert_eq!(add["ifname"], "eth0");
        assert_eq!(add["netns"].as_str(), record.netns.to_str());
        assert_eq!(
            add["args"],
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=name-a;K8S_POD_INFRA_CONTAINER_ID=a;K8S_POD_UID=uid-a"
        );
        assert_eq!(add["input"]["prevResult"]["by"], "one");
        assert_eq!(
            add["input"]["runtimeConfig"],
            json!({"portMappings": [
            {"hostPort": 80, "containerPort": 8080, "protocol": "tcp"}]})
        );
        assert_eq!(log[2]["input"].get("runtimeConfig"), None);
        assert_eq!(
            log[6]["input"]["cni.dev/valid-attachments"],
            json!([{"containerID": "a", "ifname": "eth0"}])
        );
        for del in &log[8..] {
            assert_eq!(del["input"]["prevResult"]["by"], "two");
        }
    });
}

/// A version has the calls that its specification knows, and no others.
#[test]
fn each_version_has_its_own_calls() {
    for (version, calls, previous) in [
        ("0.3.1", "ADD one,ADD two,DEL two,DEL one", false),
        (
            "0.4.0",
            "ADD one,ADD two,CHECK one,CHECK two,DEL two,DEL one",
            true,
        ),
        (
            "1.0.0",
            "ADD one,ADD two,CHECK one,CHECK two,DEL two,DEL one",
            true,
        ),
    ] {
        on_host(move |host| {
            logging(host, "one");
            logging(host, "two");
            let list = json!({"cniVersion": version, "name": "n",
                "plugins": [{"type": "one"}, {"type": "two"}]});
            host.write_list("10-net.conflist", &list.to_string());
            let network = host.network();
            network.status().unwrap();
            let (record, attachment) = attach(&network, request("a"));
            network.check(&record).unwrap();
            drop(attachment);
            let known = std::slice::from_ref(&record);
            let collected = network.collect_garbage(|| known.to_vec());
            assert!(matches!(&collected, Collected::Done(failed) if failed.is_empty()));
            network.remove(&record).unwrap();
            let log = log(host);
            let word = |call: &Value, name: &str| call[name].as_str().unwrap().to_owned();
            let made: Vec<String> = log
                .iter()
                .map(|call| format!("{} {}", word(call, "command"), word(call, "plugin")))
                .collect();
            assert_eq!(made.join(","), calls, "{version}");
            for call in &log {
                assert_eq!(call["input"]["cniVersion"], version);
                if call["command"] == "DEL" {
                    let told = call["input"].get("prevResult").is_some();
                    assert_eq!(told, previous, "{version}: {call}");
                }
            }
        });
    }
}

#[test]
fn calls_that_a_list_disables_are_not_made() {
    on_host(|host| {
        logging(host, "one");
        let list = json!({"cniVersion": "1.1.0", "name": "n", "disableCheck": true,
            "disableGC": true, "plugins": [{"type": "one"}]});
        host.write_list("10-net.conflist", &list.to_string());
        let network = host.network();
        let (record, attachment) = attach(&network, request("a"));
        network.check(&record).unwrap();
        drop(attachment);
        network.collect_garbage(Vec::new);
        network.remove(&record).unwrap();
        let log = log(host);
        let made: Vec<_> = log.iter().map(|call| &call["command"]).collect();
        assert_eq!(made, ["ADD", "DEL"]);
    });
}

#[test]
fn garbage_is_collected_while_no_plugin_works_and_not_after_one_that_hangs() {
    on_host(|host| {
        let (at, go) = (host.dir.path().join("at"), host.dir.path().join("go"));
        let gate = format!(
            "{VERSION}
             echo $CNI_COMMAND >> {at}
             test $CNI_COMMAND != ADD || until test -e {go}; do sleep 0.05; done
             test $CNI_COMMAND != GC || exec sleep 1000
             echo '{{\"cniVersion\":\"1.1.0\"}}'",
            at = at.display(),
            go = go.display()
        );
        host.write_plugin("gate", &gate);
        let list = json!({"cniVersion": "1.1.0", "name": "n", "plugins": [
            {"type": "gate"}, {"type": "gate"}]});
        host.write_list("10-net.conflist", &list.to_string());
        let mut config = host.config.clone();
        config.plugin_timeout = Duration::from_secs(2);
        let patient = host.network();
        let mut record = patient.plan(request("a")).unwrap();
        std::thread::scope(|scope| {
            // It makes no interface, and so fails in the end.
            let attach = scope.spawn(|| patient.attach(&mut record).unwrap_err());
            while lines(&at).is_empty() {
                std::thread::sleep(Duration::from_millis(10));
            }
            let collected = patient.collect_garbage(|| panic!("nobody is asked"));
            assert!(matches!(collected, Collected::Busy));
            std::fs::write(&go, "").unwrap();
            attach.join().unwrap();
        });
        std::fs::remove_file(&at).unwrap();
        let network = Network::new(config).unwrap();
        let Collected::Done(failed) = network.collect_garbage(Vec::new) else {
            panic!("busy");
        };
        assert!(
            matches!(failed[..], [ref e] if matches!(e.failure, PluginFailure::TimedOut { .. }))
        );
        assert_eq!(lines(&at), ["GC"]);
    });
}
