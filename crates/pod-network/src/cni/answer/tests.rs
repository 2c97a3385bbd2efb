use super::*;
use proptest::prelude::*;
use serde_json::json;

fn read(value: &Value, version: SpecVersion) -> Result<Value, ResultError> {
    read_result(value.to_string().as_bytes(), version)
}

#[test]
fn a_result_keeps_what_we_do_not_know() {
    let answer = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "eth0", "sandbox": "/x", "socketPath": "/y"}],
        "ips": [{"address": "10.1.0.2/16", "gateway": "10.1.0.1", "interface": 0}],
        "vendor": {"a": 1},
    });
    assert_eq!(read(&answer, SpecVersion::V1_0_0).unwrap(), answer);
    let result = parse(&answer).unwrap();
    assert_eq!(
        result.ips.first().unwrap().gateway,
        Some("10.1.0.1".parse().unwrap())
    );
}

#[test]
fn versions_are_brought_to_the_list_s() {
    let old = json!({"cniVersion": "0.4.0", "ips": [
        {"version": "4", "address": "10.1.0.2/16"}, {"version": "6", "address": "fd00::2/64"},
    ]});
    let new = json!({"cniVersion": "1.0.0", "ips": [
        {"address": "10.1.0.2/16"}, {"address": "fd00::2/64"},
    ]});
    assert_eq!(read(&old, SpecVersion::V1_0_0).unwrap(), new);
    assert_eq!(read(&new, SpecVersion::V0_4_0).unwrap(), old);
    let unknown = json!({"cniVersion": "0.2.0", "ip4": {}});
    assert!(matches!(
        read(&unknown, SpecVersion::V1_0_0),
        Err(ResultError::Version(v)) if v == "0.2.0"
    ));
}

#[test]
fn a_result_without_version_is_taken_for_the_list_s() {
    let answer = read(&json!({"ips": null}), SpecVersion::V0_3_1).unwrap();
    assert_eq!(answer.get("cniVersion"), Some(&json!("0.3.1")));
}

#[test]
fn nonsense_is_told_by_its_kind() {
    let version = SpecVersion::V1_0_0;
    assert!(matches!(
        read_result(b" \n", version),
        Err(ResultError::Empty)
    ));
    for nonsense in [
        "hello",
        "{",
        "[1]",
        "\"x\"",
        r#"{"ips":[{"address":"10.0.0.300/8"}]}"#,
    ] {
        assert!(
            matches!(
                read_result(nonsense.as_bytes(), version),
                Err(ResultError::Malformed { .. })
            ),
            "{nonsense}"
        );
    }
    let dangling = json!({"interfaces": [{"name": "eth0"}], "ips": [{"address": "10.0.0.2/8", "interface": 1}]});
    assert!(matches!(
        read(&dangling, version),
        Err(ResultError::Interface {
            index: 1,
            count: 1,
            ..
        })
    ));
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = read_result(&bytes, SpecVersion::V1_1_0);
    }

    #[test]
    fn what_is_read_can_be_read_again(
        address in "10\\.[0-9]{1,2}\\.0\\.[0-9]{1,2}/[0-9]{1,2}", extra in "[a-z]{1,6}", old in any::<bool>(),
    ) {
        let answer = json!({"cniVersion": if old {"0.3.1"} else {"1.1.0"}, "ips": [{"address": address}], "x": extra});
        if let Ok(value) = read(&answer, SpecVersion::V0_4_0) {
            prop_assert_eq!(read(&value, SpecVersion::V0_4_0).unwrap(), value);
        }
    }
}
