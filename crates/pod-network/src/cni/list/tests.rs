use super::*;
use proptest::prelude::*;

fn conflist(head: &str) -> Result<NetworkList, ListError> {
    let text = format!(r#"{{{head}"name":"net","plugins":[{{"type":"bridge"}}]}}"#);
    NetworkList::from_conflist(text.as_bytes())
}

#[test]
fn every_supported_version_is_taken() {
    for version in SpecVersion::ALL {
        let list = conflist(&format!(r#""cniVersion":"{version}","#)).unwrap();
        assert_eq!(list.version, version);
    }
}

#[test]
fn other_versions_are_refused_by_name() {
    let error = conflist(r#""cniVersion":"0.2.0","#).unwrap_err();
    assert!(error.to_string().contains("\"0.2.0\""), "{error}");
    assert!(matches!(conflist(""), Err(ListError::Field { .. })));
    assert!(matches!(
        conflist(r#""cniVersion":1,"#),
        Err(ListError::Field { .. })
    ));
}

#[test]
fn the_highest_of_several_versions_that_we_know_is_taken() {
    let list = conflist(r#""cniVersion":"0.4.0","cniVersions":["0.4.0","1.1.0","9.0.0"],"#);
    assert_eq!(list.unwrap().version, SpecVersion::V1_1_0);
    let error = conflist(r#""cniVersions":["9.0.0"],"#).unwrap_err();
    assert!(error.to_string().contains("9.0.0"), "{error}");
}

#[test]
fn switches_may_be_strings() {
    let list = conflist(r#""cniVersion":"1.0.0","disableCheck":"true","disableGC":true,"#).unwrap();
    assert!(list.disable_check && list.disable_gc);
    assert!(conflist(r#""cniVersion":"1.0.0","disableCheck":3,"#).is_err());
}

#[test]
fn a_plugin_cannot_be_a_path() {
    for kind in ["", "../sh", "/bin/sh", ".."] {
        let text =
            format!(r#"{{"cniVersion":"1.0.0","name":"net","plugins":[{{"type":"{kind}"}}]}}"#);
        assert!(
            NetworkList::from_conflist(text.as_bytes()).is_err(),
            "{kind}"
        );
    }
}

#[test]
fn names_are_those_of_the_specification() {
    assert!(is_identifier("k8s-pod-network_1.x"));
    for name in ["", "-a", ".a", "a/b", "a b", "ä"] {
        assert!(!is_identifier(name), "{name}");
    }
}

#[test]
fn a_list_in_a_conf_file_is_told_apart() {
    let text = br#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge"}]}"#;
    assert!(matches!(
        NetworkList::from_conf(text),
        Err(ListError::ListInConf)
    ));
    assert!(
        NetworkList::from_conflist(br#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#).is_err()
    );
}

#[test]
fn only_enabled_capabilities_count() {
    let text = br#"{"cniVersion":"1.0.0","name":"net","type":"portmap",
        "capabilities":{"portMappings":true,"bandwidth":false,"dns":"yes"}}"#;
    let list = NetworkList::from_conf(text).unwrap();
    let plugin = list.plugins.first().unwrap();
    assert_eq!(
        plugin.capabilities().into_iter().collect::<Vec<_>>(),
        ["portMappings"]
    );
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = NetworkList::from_conflist(&bytes);
        let _ = NetworkList::from_conf(&bytes);
    }

    #[test]
    fn a_list_survives_the_record(kind in "[a-z]{1,8}", extra in "[a-z]{1,8}", value in any::<i64>()) {
        let text = serde_json::json!({
            "cniVersion": "1.1.0", "name": "n", "plugins": [{"type": kind, (extra): value}],
        });
        if let Ok(list) = NetworkList::from_conflist(text.to_string().as_bytes()) {
            let stored = serde_json::to_string(&list).unwrap();
            prop_assert_eq!(serde_json::from_str::<NetworkList>(&stored).unwrap(), list);
        }
    }
}
