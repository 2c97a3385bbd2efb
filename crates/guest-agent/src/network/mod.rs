//! The pod's network interfaces: found by their Ethernet addresses, named, given
//! addresses, routes and neighbours.
//!
//! What the kernel has already is passed over, so that a repeated SetupSandbox
//! ends where the first one would have.

mod netlink;
mod request;

use crate::error::{AgentError, Doing};
use guest_api::proto;
use netlink::{Link, Netlink};
use request::{Mac, Nic};
use rustix::io::Errno;
use std::io::ErrorKind;
use std::os::fd::BorrowedFd;

/// Configures `nics`; the loopback is up since the start.
///
/// # Errors
/// Names the field that is wrong, or that the kernel refuses.
pub(crate) fn set_up(nics: &[proto::Nic]) -> Result<(), AgentError> {
    let nics = request::check(nics)?;
    if nics.is_empty() {
        return Ok(());
    }
    let mut netlink = Netlink::open().doing(|| "opening a netlink socket".into())?;
    let links = find(&mut netlink, &nics)?;
    rename(&mut netlink, &nics, &links)?;
    for (index, (nic, link)) in nics.iter().zip(&links).enumerate() {
        configure(&mut netlink, nic, link.index, &format!("nics[{index}]"))?;
    }
    Ok(())
}

/// Moves `nics` to another network namespace.
///
/// # Errors
/// Names the field that is wrong.
pub(crate) fn give(nics: &[proto::Nic], namespace: BorrowedFd<'_>) -> Result<(), AgentError> {
    let nics = request::check(nics)?;
    if nics.is_empty() {
        return Ok(());
    }
    let mut netlink = Netlink::open().doing(|| "opening a netlink socket".into())?;
    for link in find(&mut netlink, &nics)? {
        netlink
            .give(link.index, namespace)
            .doing(|| format!("moving {} to the pod's network namespace", link.name))?;
    }
    Ok(())
}

/// The interface of each of `nics`.
fn find(netlink: &mut Netlink, nics: &[Nic]) -> Result<Vec<Link>, AgentError> {
    let links = netlink
        .links()
        .doing(|| "listing the network interfaces".into())?;
    nics.iter()
        .enumerate()
        .map(|(index, nic)| {
            let found = links.iter().find(|link| link.mac == Some(nic.mac));
            found.cloned().ok_or_else(|| {
                let problem = format!("the VM has no network device {}", Mac(nic.mac));
                AgentError::invalid(format!("nics[{index}].mac"), problem)
            })
        })
        .collect()
}

/// Gives each interface its name. All that have another one give it up first:
/// they may want each other's.
fn rename(netlink: &mut Netlink, nics: &[Nic], links: &[Link]) -> Result<(), AgentError> {
    let wrong = || {
        let all = nics.iter().zip(links).enumerate();
        all.filter(|(_, (nic, link))| nic.name != link.name)
    };
    for (index, (_, link)) in wrong() {
        netlink
            .rename(link.index, &format!("unnamed{index}"))
            .doing(|| format!("taking the name of {}", link.name))?;
    }
    for (index, (nic, link)) in wrong() {
        netlink.rename(link.index, &nic.name).map_err(|e| {
            let problem = format!("naming an interface {} failed: {e}", nic.name);
            AgentError::invalid(format!("nics[{index}].name"), problem)
        })?;
    }
    Ok(())
}

fn configure(netlink: &mut Netlink, nic: &Nic, index: u32, field: &str) -> Result<(), AgentError> {
    let name = &nic.name;
    // The name is a plain one: `request::check` saw to it.
    let accept_ra = if nic.accept_ra { "2" } else { "0" };
    set_ipv6(name, "accept_ra", accept_ra)?;
    // The link-local address is made of the MAC, which is the host's to give.
    set_ipv6(name, "accept_dad", "0")?;
    let refused = |part: String, doing: String| {
        move |e: Errno| {
            AgentError::invalid(format!("{field}.{part}"), format!("{doing} failed: {e}"))
        }
    };
    if let Some(mtu) = nic.mtu {
        let doing = format!("setting the MTU of {name} to {mtu}");
        netlink
            .set_mtu(index, mtu)
            .map_err(refused("mtu".into(), doing))?;
    }
    for (at, address) in nic.addresses.iter().enumerate() {
        let doing = format!("giving {name} the address {address}");
        unless_there(netlink.add_address(index, *address))
            .map_err(refused(format!("addresses[{at}]"), doing))?;
    }
    netlink
        .set_up(index)
        .doing(|| format!("bringing {name} up"))?;
    for (at, route) in nic.routes.iter().enumerate() {
        let doing = format!("adding the route {route} through {name}");
        unless_there(netlink.add_route(index, route))
            .map_err(refused(format!("routes[{at}]"), doing))?;
    }
    for (at, neighbour) in nic.neighbours.iter().enumerate() {
        let (address, mac) = (neighbour.address, Mac(neighbour.mac));
        let doing = format!("adding the neighbour {address} at {mac} to {name}");
        netlink
            .set_neighbour(index, neighbour)
            .map_err(refused(format!("neighbours[{at}]"), doing))?;
    }
    Ok(())
}

fn unless_there(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}

/// Sets an IPv6 setting of an interface, where there is IPv6.
fn set_ipv6(interface: &str, key: &str, value: &str) -> Result<(), AgentError> {
    let path = format!("/proc/sys/net/ipv6/conf/{interface}/{key}");
    match std::fs::write(&path, value) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        other => other.doing(|| format!("writing {value} to {path}")),
    }
}

#[cfg(test)]
mod tests;
