use super::*;
use crate::cni::answer;
use serde_json::json;

fn route(destination: &str, gateway: Option<&str>) -> Route {
    Route {
        destination: destination.parse().unwrap(),
        gateway: gateway.map(|g| g.parse().unwrap()),
        on_link: false,
        mtu: None,
        metric: None,
    }
}

#[test]
fn routes_come_in_an_order_in_which_they_can_be_added() {
    let addresses = ["10.1.0.7/32".parse().unwrap()];
    let routes = vec![
        route("0.0.0.0/0", Some("169.254.1.1")),
        route("10.2.0.0/16", Some("169.254.1.1")),
        route("169.254.1.1/32", None),
    ];
    let ordered = order(routes, &addresses);
    let destinations: Vec<String> = ordered.iter().map(|r| r.destination.to_string()).collect();
    assert_eq!(destinations, ["169.254.1.1/32", "10.2.0.0/16", "0.0.0.0/0"]);
    assert!(ordered.iter().all(|r| !r.on_link));
}

#[test]
fn a_gateway_that_nothing_leads_to_is_on_link() {
    let addresses = [
        "10.1.0.7/24".parse().unwrap(),
        "fd00::7/64".parse().unwrap(),
    ];
    let routes = vec![
        route("0.0.0.0/0", Some("10.1.0.1")),
        route("10.9.0.0/16", Some("192.0.2.1")),
        route("::/0", Some("fe80::1")),
        route("fd99::/64", Some("fd01::1")),
    ];
    let on_link: Vec<String> = order(routes, &addresses)
        .into_iter()
        .filter(|r| r.on_link)
        .map(|r| r.destination.to_string())
        .collect();
    assert_eq!(on_link, ["fd99::/64", "10.9.0.0/16"]);
}

#[test]
fn addresses_go_to_the_interface_that_the_result_names() {
    let result = answer::parse(&json!({
        "interfaces": [{"name": "veth1"}, {"name": "eth0", "sandbox": "/n"}, {"name": "net1", "sandbox": "/n"}],
        "ips": [
            {"address": "10.1.0.2/16", "interface": 1},
            {"address": "10.2.0.2/16", "interface": 2},
            {"address": "fd00::2/64"},
        ],
    }))
    .unwrap();
    let of = |name, primary| {
        let addresses = addresses_of(&result, name, primary);
        addresses
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(of("eth0", true), ["10.1.0.2/16", "fd00::2/64"]);
    assert_eq!(of("net1", false), ["10.2.0.2/16"]);
}

#[test]
fn routes_of_a_result_get_the_gateway_of_their_family() {
    let result = answer::parse(&json!({
        "ips": [{"address": "10.1.0.2/16", "gateway": "10.1.0.1"}, {"address": "fd00::2/64", "gateway": "fd00::1"}],
        "routes": [{"dst": "::/0"}, {"dst": "0.0.0.0/0", "mtu": 1400, "priority": 7},
                   {"dst": "10.9.0.0/16", "table": 100}],
    }))
    .unwrap();
    let routes = result_routes(&result);
    assert_eq!(routes.len(), 2);
    assert_eq!(routes[0].gateway, Some("fd00::1".parse().unwrap()));
    assert_eq!(routes[1].gateway, Some("10.1.0.1".parse().unwrap()));
    assert_eq!((routes[1].mtu, routes[1].metric), (Some(1400), Some(7)));
}
