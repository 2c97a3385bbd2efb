//! In network namespaces of their own, with interfaces that are no VM's.

use super::*;
use guest_api::proto::{Neighbour, Nic, Route};
use std::process::Command;

/// Runs `test` on a thread with a network namespace of its own; where the test
/// may not make one, says so.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        if let Err(e) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
            eprintln!("SKIPPED: no network namespace can be made: {e}");
            return;
        }
        test();
    });
    thread.join().unwrap();
}

/// Runs ip(8) with these words; what it prints.
fn ip(words: &str) -> String {
    let output = Command::new("ip")
        .args(words.split_whitespace())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {words}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn has(text: &str, words: &str) -> bool {
    let wanted: Vec<&str> = words.split_whitespace().collect();
    let found: Vec<&str> = text.split_whitespace().collect();
    found.windows(wanted.len()).any(|part| part == wanted)
}

fn nic(name: &str, last: u8) -> Nic {
    Nic {
        name: name.into(),
        mac: vec![2, 0, 0, 0, 0, last],
        ..Nic::default()
    }
}

fn route(destination: &str, gateway: &str) -> Route {
    Route {
        destination: destination.into(),
        gateway: gateway.into(),
        ..Route::default()
    }
}

/// Two veth pairs, "va" to "peer-va" and "vb" to "peer-vb".
fn make_links() {
    for (name, last) in [("va", 1), ("vb", 2)] {
        ip(&format!(
            "link add name {name} address 02:00:00:00:00:0{last} type veth peer name peer-{name}"
        ));
        ip(&format!("link set peer-{name} up mtu 9000"));
    }
}

#[test]
fn interfaces_get_all_that_the_request_says() {
    in_namespace(|| {
        make_links();
        let first = Nic {
            mtu: 1400,
            addresses: vec!["10.1.2.3/24".into(), "fd00:1::3/64".into()],
            routes: vec![
                route("0.0.0.0/0", "10.1.2.1"),
                route("192.168.9.0/24", ""),
                Route {
                    on_link: true,
                    metric: 77,
                    mtu: 1300,
                    ..route("10.200.0.0/16", "169.254.1.1")
                },
                route("::/0", "fd00:1::1"),
            ],
            neighbours: vec![Neighbour {
                address: "169.254.1.1".into(),
                mac: vec![0xee; 6],
            }],
            ..nic("eth0", 1)
        };
        let second = Nic {
            addresses: vec!["10.9.0.1/32".into()],
            ..nic("net1", 2)
        };
        let nics = [first, second];
        set_up(&nics).unwrap();
        // Repeated, it changes nothing.
        set_up(&nics).unwrap();
        let link = ip("link show eth0");
        assert!(has(&link, "mtu 1400") && has(&link, "state UP"), "{link}");
        let addresses = ip("addr show eth0");
        assert!(
            has(&addresses, "inet 10.1.2.3/24 brd 10.1.2.255"),
            "{addresses}"
        );
        assert!(
            has(&addresses, "inet6 fd00:1::3/64 scope global nodad"),
            "{addresses}"
        );
        let routes = ip("route show");
        for route in [
            "default via 10.1.2.1 dev eth0",
            "192.168.9.0/24 dev eth0",
            "10.200.0.0/16 via 169.254.1.1 dev eth0",
            "onlink metric 77 mtu 1300",
        ] {
            let alternative = "metric 77 mtu 1300 onlink";
            let there = has(&routes, route)
                || route.starts_with("onlink")
                    && routes.contains("onlink")
                    && (has(&routes, alternative) || has(&routes, "metric 77 onlink mtu 1300"));
            assert!(there, "{route} is not in {routes}");
        }
        assert!(has(&ip("-6 route show"), "default via fd00:1::1 dev eth0"));
        let neighbours = ip("neigh show dev eth0");
        assert!(
            has(
                &neighbours,
                "169.254.1.1 lladdr ee:ee:ee:ee:ee:ee PERMANENT"
            ),
            "{neighbours}"
        );
        assert!(has(&ip("addr show net1"), "inet 10.9.0.1/32"));
    });
}

#[test]
fn interfaces_exchange_their_names() {
    in_namespace(|| {
        make_links();
        set_up(&[nic("vb", 1), nic("va", 2)]).unwrap();
        assert!(ip("link show vb").contains("02:00:00:00:00:01"));
        assert!(ip("link show va").contains("02:00:00:00:00:02"));
    });
}

#[test]
fn what_cannot_be_done_is_named() {
    in_namespace(|| {
        make_links();
        let field = |nic: Nic| set_up(&[nic]).unwrap_err().into_wire().field;
        assert_eq!(field(nic("eth0", 9)), "nics[0].mac");
        assert_eq!(field(nic("peer-vb", 1)), "nics[0].name");
        let unreachable = Nic {
            addresses: vec!["10.1.2.3/24".into()],
            routes: vec![route("10.1.2.0/24", ""), route("0.0.0.0/0", "10.7.7.7")],
            ..nic("eth0", 1)
        };
        assert_eq!(field(unreachable), "nics[0].routes[1]");
        let multicast = Nic {
            addresses: vec!["10.1.2.3/24".into(), "ff02::1/64".into()],
            ..nic("net1", 2)
        };
        assert_eq!(field(multicast), "nics[0].addresses[1]");
    });
}
