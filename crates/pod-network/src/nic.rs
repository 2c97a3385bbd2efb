//! What the guest is told of its interfaces, read from the CNI's result and
//! from what the plugins did in the namespace.

use crate::MacAddr;
use crate::cni::answer::AddResult;
use crate::netlink::{Link, Netlink, NetlinkError};
use crate::tap;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::os::fd::OwnedFd;

/// One interface of the guest.
#[derive(Debug)]
pub struct Nic {
    /// Its name, `eth0`.
    pub name: String,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Bytes.
    pub mtu: u32,
    /// Its addresses, in the order of the CNI's result. Where the CNI took the
    /// route to an address's subnet away (ptp), the prefix is the whole address,
    /// so that the guest's kernel does not put that route back.
    pub addresses: Vec<IpNet>,
    /// Its routes, in an order in which they can be added.
    pub routes: Vec<Route>,
    /// Neighbours that it cannot or need not ask for.
    pub neighbours: Vec<Neighbour>,
    /// The TAP's descriptors, one a queue (see [`crate::VNET_HEADER_LEN`]);
    /// empty where the TAP was not asked for.
    pub taps: Vec<OwnedFd>,
}

/// A route through an interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub destination: IpNet,
    /// By which router; none for what is on the link itself.
    pub gateway: Option<IpAddr>,
    /// The gateway is in none of the interface's subnets and has no route of its
    /// own: it is to be taken to be on the link.
    pub on_link: bool,
    /// Bytes.
    pub mtu: Option<u32>,
    /// The lower, the better.
    pub metric: Option<u32>,
}

/// A fixed entry of the neighbour table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// Its address.
    pub address: IpAddr,
    /// Its Ethernet address.
    pub mac: MacAddr,
}

/// An interface of the pod's namespace, and what the guest's is to be like.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) link: Link,
    pub(crate) mac: MacAddr,
    pub(crate) addresses: Vec<IpNet>,
    pub(crate) routes: Vec<Route>,
    pub(crate) neighbours: Vec<Neighbour>,
}

/// The result does not fit what is in the namespace.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NicError {
    /// The namespace could not be read.
    #[error("cannot read the interfaces of the pod's namespace")]
    Read(#[source] NetlinkError),
    /// The plugins reported an interface that is not there, or none at all.
    #[error("the CNI reported success, but interface {0:?} is not in the pod's namespace")]
    NotThere(String),
    /// It has no Ethernet address.
    #[error("interface {0:?} is no Ethernet interface, and cannot be joined to a VM")]
    NotEthernet(String),
}

/// Reads the interfaces that the CNI made. To be called in the pod's namespace.
///
/// `in_pod` says whether the `sandbox` of a result's interface is the pod's.
pub(crate) fn read(
    netlink: &mut Netlink,
    result: &AddResult,
    primary: &str,
    in_pod: impl Fn(&str) -> bool,
) -> Result<Vec<Found>, NicError> {
    let links = netlink.links().map_err(NicError::Read)?;
    let mut names: Vec<&str> = Vec::new();
    for interface in &result.interfaces {
        let ours = !interface.sandbox.is_empty() && in_pod(&interface.sandbox);
        if ours && interface.name != "lo" && !names.contains(&interface.name.as_str()) {
            names.push(&interface.name);
        }
    }
    // Results may leave interfaces out; the one that was asked for is there.
    if names.is_empty() {
        names.push(primary);
    }
    // Of several networks' results a plugin can return one only (Multus: that of the
    // default network).
    for link in &links {
        if !names.contains(&link.name.as_str()) && is_in_use(netlink, link)? {
            names.push(&link.name);
        }
    }
    names
        .into_iter()
        .map(|name| {
            let link = links
                .iter()
                .find(|link| link.name == name)
                .ok_or_else(|| NicError::NotThere(name.to_owned()))?;
            read_one(netlink, result, link, name == primary)
        })
        .collect()
}

/// Whether somebody made an interface for the pod: not a TAP of ours, none that works
/// for another one (of a bond or bridge), and not one that a kernel gives each
/// namespace, which is down and without address.
fn is_in_use(netlink: &mut Netlink, link: &Link) -> Result<bool, NicError> {
    if link.name == "lo" || link.mac.is_none() || link.enslaved || tap::is_ours(&link.name) {
        return Ok(false);
    }
    let addresses = netlink.addresses(link.index).map_err(NicError::Read)?;
    Ok(link.up || !addresses.is_empty())
}

fn read_one(
    netlink: &mut Netlink,
    result: &AddResult,
    link: &Link,
    primary: bool,
) -> Result<Found, NicError> {
    let mac = link
        .mac
        .ok_or_else(|| NicError::NotEthernet(link.name.clone()))?;
    let configured = netlink.addresses(link.index).map_err(NicError::Read)?;
    let kernel_routes = netlink.routes(link.index).map_err(NicError::Read)?;
    let neighbours = netlink.neighbours(link.index).map_err(NicError::Read)?;

    let mut addresses = addresses_of(result, &link.name, primary);
    for address in &configured {
        if !addresses.iter().any(|a| a.addr() == address.addr()) {
            addresses.push(*address);
        }
    }
    // An interface that is down has no such routes yet.
    if link.up {
        let connected = netlink.connected(link.index).map_err(NicError::Read)?;
        for address in &mut addresses {
            if configured.contains(address) && !connected.contains(&address.trunc()) {
                *address = IpNet::from(address.addr());
            }
        }
    }
    // What the plugins did in the namespace counts; some report no routes, and
    // some configure nothing there and leave it to the runtime.
    let routes = if configured.is_empty() && kernel_routes.is_empty() && primary {
        result_routes(result)
    } else {
        kernel_routes
            .into_iter()
            .map(|route| Route {
                destination: route.destination,
                gateway: route.gateway,
                on_link: route.on_link,
                mtu: route.mtu,
                metric: route.metric,
            })
            .collect()
    };
    Ok(Found {
        link: link.clone(),
        mac,
        routes: order(routes, &addresses),
        addresses,
        neighbours: neighbours
            .into_iter()
            .map(|(address, mac)| Neighbour { address, mac })
            .collect(),
    })
}

/// The addresses that the result gives to that interface of the pod.
pub(crate) fn addresses_of(result: &AddResult, name: &str, primary: bool) -> Vec<IpNet> {
    result
        .ips
        .iter()
        .filter(|ip| match ip.interface {
            Some(index) => result.interfaces.get(index).is_some_and(|i| i.name == name),
            None => primary,
        })
        .map(|ip| ip.address)
        .collect()
}

fn result_routes(result: &AddResult) -> Vec<Route> {
    let gateway_for = |destination: &IpNet| {
        result
            .ips
            .iter()
            .filter_map(|ip| ip.gateway)
            .find(|gateway| gateway.is_ipv4() == destination.addr().is_ipv4())
    };
    result
        .routes
        .iter()
        .filter(|route| matches!(route.table, None | Some(0 | 254)))
        .map(|route| Route {
            destination: route.dst,
            gateway: route.gw.or_else(|| gateway_for(&route.dst)),
            on_link: false,
            mtu: route.mtu.filter(|mtu| *mtu > 0),
            metric: route.priority.filter(|metric| *metric > 0),
        })
        .collect()
}

/// Routes without a gateway first, since gateways may be reached by them; then
/// the narrow before the wide. Marks gateways that nothing leads to as on-link.
fn order(mut routes: Vec<Route>, addresses: &[IpNet]) -> Vec<Route> {
    let links: Vec<IpNet> = routes
        .iter()
        .filter(|route| route.gateway.is_none())
        .map(|route| route.destination)
        .chain(addresses.iter().map(IpNet::trunc))
        .collect();
    for route in &mut routes {
        if let Some(gateway) = route.gateway {
            // An IPv6 link-local gateway is on the link by nature.
            let link_local = matches!(gateway, IpAddr::V6(ip) if ip.is_unicast_link_local());
            route.on_link |= !link_local && !links.iter().any(|net| net.contains(&gateway));
        }
    }
    routes.sort_by_key(|route| {
        (
            route.gateway.is_some(),
            std::cmp::Reverse(route.destination.prefix_len()),
        )
    });
    routes
}

#[cfg(test)]
mod tests;
