//! What a request says of interfaces, checked and typed.

use crate::error::AgentError;
use guest_api::proto;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// Longest name of an interface in bytes (IFNAMSIZ and its NUL).
const MAX_NAME: usize = 15;
/// Most interfaces, and most addresses, routes or neighbours of one.
const MAX_NICS: usize = 64;
const MAX_ENTRIES: usize = 4096;

/// An interface.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Nic {
    pub(super) name: String,
    pub(super) mac: [u8; 6],
    pub(super) mtu: Option<u32>,
    pub(super) addresses: Vec<Net>,
    pub(super) routes: Vec<Route>,
    pub(super) neighbours: Vec<Neighbour>,
    pub(super) accept_ra: bool,
}

/// An address with the length of its network's prefix in bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Net {
    pub(super) address: IpAddr,
    pub(super) prefix: u8,
}

/// A route through an interface.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) destination: Net,
    pub(super) gateway: Option<IpAddr>,
    pub(super) on_link: bool,
    pub(super) metric: Option<u32>,
    pub(super) mtu: Option<u32>,
}

/// A fixed entry of the neighbour table.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Neighbour {
    pub(super) address: IpAddr,
    pub(super) mac: [u8; 6],
}

/// An Ethernet address as people write it.
pub(super) struct Mac(pub(super) [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.destination)?;
        match self.gateway {
            Some(gateway) => write!(f, " by {gateway}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Net {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, prefix) = text.split_once('/').ok_or(())?;
        let address: IpAddr = address.parse().map_err(drop)?;
        // No sign, no leading zeroes: as everybody else reads it.
        let plain = prefix.bytes().all(|byte| byte.is_ascii_digit())
            && (prefix.len() == 1 || !prefix.starts_with('0'));
        let prefix: u8 = prefix.parse().map_err(drop)?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        if !plain || prefix > most {
            return Err(());
        }
        Ok(Net { address, prefix })
    }
}

impl Net {
    /// Without the bits behind the prefix.
    pub(super) fn network(self) -> IpAddr {
        match self.address {
            IpAddr::V4(ip) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix));
                IpAddr::V4((ip.to_bits() & mask.unwrap_or(0)).into())
            }
            IpAddr::V6(ip) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix));
                IpAddr::V6((ip.to_bits() & mask.unwrap_or(0)).into())
            }
        }
    }
}

/// Checks everything before anything is done.
pub(super) fn check(nics: &[proto::Nic]) -> Result<Vec<Nic>, AgentError> {
    if nics.len() > MAX_NICS {
        let problem = format!("a pod has at most {MAX_NICS} interfaces");
        return Err(AgentError::invalid("nics", problem));
    }
    let mut checked: Vec<Nic> = Vec::new();
    for (index, nic) in nics.iter().enumerate() {
        let nic = check_nic(nic, &format!("nics[{index}]"))?;
        for (twice, field) in [
            (checked.iter().any(|n| n.name == nic.name), "name"),
            (checked.iter().any(|n| n.mac == nic.mac), "mac"),
        ] {
            if twice {
                let problem = "another interface of the pod has the same";
                return Err(AgentError::invalid(
                    format!("nics[{index}].{field}"),
                    problem,
                ));
            }
        }
        checked.push(nic);
    }
    Ok(checked)
}

fn check_nic(nic: &proto::Nic, field: &str) -> Result<Nic, AgentError> {
    let at = |part: &str| format!("{field}.{part}");
    check_name(&nic.name, &at("name"))?;
    if nic.mtu != 0 && !(68..=65_535).contains(&nic.mtu) {
        return Err(AgentError::invalid(
            at("mtu"),
            "an MTU has 68 to 65535 bytes",
        ));
    }
    for (count, part) in [
        (nic.addresses.len(), "addresses"),
        (nic.routes.len(), "routes"),
        (nic.neighbours.len(), "neighbours"),
    ] {
        if count > MAX_ENTRIES {
            let problem = format!("there may be at most {MAX_ENTRIES}");
            return Err(AgentError::invalid(at(part), problem));
        }
    }
    let each = |part: &'static str| move |index: usize| format!("{field}.{part}[{index}]");
    Ok(Nic {
        name: nic.name.clone(),
        mac: mac(&nic.mac, || at("mac"))?,
        mtu: (nic.mtu != 0).then_some(nic.mtu),
        addresses: all(&nic.addresses, each("addresses"), |text, field| {
            net(text, || field.to_owned())
        })?,
        routes: all(&nic.routes, each("routes"), check_route)?,
        neighbours: all(&nic.neighbours, each("neighbours"), |neighbour, field| {
            Ok(Neighbour {
                address: address(&neighbour.address, || format!("{field}.address"))?,
                mac: mac(&neighbour.mac, || format!("{field}.mac"))?,
            })
        })?,
        accept_ra: nic.accept_ra,
    })
}

fn all<T, U>(
    items: &[T],
    field: impl Fn(usize) -> String,
    check: impl Fn(&T, &str) -> Result<U, AgentError>,
) -> Result<Vec<U>, AgentError> {
    let items = items.iter().enumerate();
    items
        .map(|(index, item)| check(item, &field(index)))
        .collect()
}

/// A name becomes part of paths below /proc/sys.
fn check_name(name: &str, field: &str) -> Result<(), AgentError> {
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%');
    let kept = matches!(name, "." | ".." | "lo" | "all" | "default") || name.starts_with("unnamed");
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(plain) || kept {
        let problem = format!("\"{name}\" cannot be the name of an interface");
        return Err(AgentError::invalid(field, problem));
    }
    Ok(())
}

fn check_route(route: &proto::Route, field: &str) -> Result<Route, AgentError> {
    let destination = net(&route.destination, || format!("{field}.destination"))?;
    let gateway = match route.gateway.as_str() {
        "" => None,
        text => Some(address(text, || format!("{field}.gateway"))?),
    };
    if gateway.is_some_and(|gateway| gateway.is_ipv4() != destination.address.is_ipv4()) {
        let problem = "a gateway and its destination are of one family";
        return Err(AgentError::invalid(format!("{field}.gateway"), problem));
    }
    Ok(Route {
        destination: Net {
            address: destination.network(),
            ..destination
        },
        gateway,
        on_link: route.on_link,
        metric: (route.metric != 0).then_some(route.metric),
        mtu: (route.mtu != 0).then_some(route.mtu),
    })
}

fn net(text: &str, field: impl FnOnce() -> String) -> Result<Net, AgentError> {
    text.parse().map_err(|()| {
        let problem = format!("\"{text}\" is no address with a prefix, as in 10.1.2.3/24");
        AgentError::invalid(field(), problem)
    })
}

fn address(text: &str, field: impl FnOnce() -> String) -> Result<IpAddr, AgentError> {
    text.parse()
        .map_err(|_| AgentError::invalid(field(), format!("\"{text}\" is no IP address")))
}

fn mac(bytes: &[u8], field: impl FnOnce() -> String) -> Result<[u8; 6], AgentError> {
    bytes
        .try_into()
        .map_err(|_| AgentError::invalid(field(), "an Ethernet address has six bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nic() -> proto::Nic {
        proto::Nic {
            name: "eth0".into(),
            mac: vec![2, 0, 0, 0, 0, 1],
            mtu: 1500,
            addresses: vec!["10.1.2.3/24".into(), "fd00::3/64".into()],
            routes: vec![proto::Route {
                destination: "10.9.8.7/8".into(),
                gateway: "10.1.2.1".into(),
                ..proto::Route::default()
            }],
            neighbours: vec![proto::Neighbour {
                address: "10.1.2.1".into(),
                mac: vec![2; 6],
            }],
            accept_ra: false,
        }
    }

    #[test]
    fn a_destination_is_a_network() {
        let nics = check(&[nic()]).unwrap();
        assert_eq!(nics[0].routes[0].to_string(), "10.0.0.0/8 by 10.1.2.1");
        let network = |text: &str| text.parse::<Net>().unwrap().network().to_string();
        assert_eq!(network("1.2.3.4/0"), "0.0.0.0");
        assert_eq!(network("1.2.3.4/32"), "1.2.3.4");
        assert_eq!(network("fd00::ffff/0"), "::");
        assert_eq!(network("fd00:1:2:3:4::/64"), "fd00:1:2:3::");
    }

    #[test]
    fn what_is_wrong_is_named() {
        type Change = fn(&mut proto::Nic);
        let cases: [(Change, &str); 14] = [
            (|n| n.name = String::new(), "nics[0].name"),
            (|n| n.name = "sixteen-letters-".into(), "nics[0].name"),
            (|n| n.name = "../../sys".into(), "nics[0].name"),
            (|n| n.name = "..".into(), "nics[0].name"),
            (|n| n.name = "lo".into(), "nics[0].name"),
            (|n| n.mac = vec![1; 7], "nics[0].mac"),
            (|n| n.mtu = 67, "nics[0].mtu"),
            (
                |n| n.addresses[1] = "fd00::3".into(),
                "nics[0].addresses[1]",
            ),
            (
                |n| n.addresses[0] = "1.2.3.4/33".into(),
                "nics[0].addresses[0]",
            ),
            (
                |n| n.addresses[0] = "1.2.3.4/+8".into(),
                "nics[0].addresses[0]",
            ),
            (
                |n| n.routes[0].destination = String::new(),
                "nics[0].routes[0].destination",
            ),
            (
                |n| n.routes[0].gateway = "fe80::1".into(),
                "nics[0].routes[0].gateway",
            ),
            (
                |n| n.neighbours[0].address = "x".into(),
                "nics[0].neighbours[0].address",
            ),
            (
                |n| n.neighbours[0].mac = Vec::new(),
                "nics[0].neighbours[0].mac",
            ),
        ];
        for (change, field) in cases {
            let mut nic = nic();
            change(&mut nic);
            assert_eq!(check(&[nic]).unwrap_err().into_wire().field, field);
        }
        let error = check(&[nic(), nic()]).unwrap_err().into_wire();
        assert_eq!(error.field, "nics[1].name");
    }

    proptest! {
        #[test]
        fn a_network_has_no_bits_behind_its_prefix(bits in any::<u128>(), prefix in 0..=128u8) {
            let net = Net { address: IpAddr::V6(bits.into()), prefix };
            let IpAddr::V6(network) = net.network() else { panic!("changed family") };
            let behind = u128::MAX.checked_shr(prefix.into()).unwrap_or(0);
            prop_assert_eq!(network.to_bits() & behind, 0);
            prop_assert_eq!(network.to_bits() | behind, bits | behind);
        }

        #[test]
        fn any_text_is_refused_or_a_net(text in ".{0,40}") {
            if let Ok(net) = text.parse::<Net>() {
                prop_assert!(net.prefix <= 128);
            }
        }
    }
}
