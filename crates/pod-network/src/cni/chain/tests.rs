use super::*;

fn list() -> NetworkList {
    NetworkList::from_conflist(
        br#"{"cniVersion":"1.0.0","name":"net","plugins":[
            {"type":"bridge","mtu":1400,"prevResult":{"forged":true},"runtimeConfig":{"forged":true}},
            {"type":"portmap","capabilities":{"portMappings":true}}]}"#,
    )
    .unwrap()
}

fn input(place: usize, previous: Option<&Value>) -> Value {
    let list = list();
    let chain = Chain {
        list: &list,
        directories: &[],
        timeout: Duration::from_secs(1),
    };
    let target = Target {
        container_id: "id",
        netns: "/ns".into(),
        interface: "eth0",
        arguments: String::new(),
        capabilities: BTreeMap::from([
            ("portMappings", json!([{"hostPort": 1}])),
            ("bandwidth", json!({})),
        ]),
    };
    let conf = list.plugins.get(place).unwrap();
    Value::Object(chain.input(conf, Some(&target), previous, &[]))
}

#[test]
fn a_plugin_gets_only_the_capabilities_it_declares() {
    let declared = input(1, None);
    assert_eq!(
        declared.get("runtimeConfig"),
        Some(&json!({"portMappings": [{"hostPort": 1}]}))
    );
    assert_eq!(input(0, None).get("runtimeConfig"), None);
}

#[test]
fn name_version_and_previous_result_are_the_runtime_s() {
    let previous = json!({"ips": []});
    assert_eq!(
        input(0, Some(&previous)),
        json!({"type": "bridge", "mtu": 1400, "name": "net", "cniVersion": "1.0.0", "prevResult": {"ips": []}})
    );
    assert_eq!(input(0, None).get("prevResult"), None);
}

#[test]
fn a_missing_program_is_named_with_where_it_was_sought() {
    let list = list();
    let directories = [
        PathBuf::from("/nonexistent/a"),
        PathBuf::from("/nonexistent/b"),
    ];
    let chain = Chain {
        list: &list,
        directories: &directories,
        timeout: Duration::from_secs(1),
    };
    let text = crate::chain_text(&chain.programs().unwrap_err());
    for part in [
        "\"bridge\"",
        "\"net\"",
        "/nonexistent/a or /nonexistent/b",
        "install",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}
