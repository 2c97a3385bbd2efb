//! What the kernel knows of interfaces, addresses, routes and neighbours.

use super::{Netlink, NetlinkError};
use crate::MacAddr;
use ipnet::IpNet;
use netlink_packet_core::Nla;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoData, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, Stats64,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
    RouteProtocol, RouteType,
};
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// linux/if_link.h; the crate does not name it.
const IFLA_TUN_NUM_QUEUES: u16 = 8;

/// One interface.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// None where the interface has no Ethernet address.
    pub(crate) mac: Option<MacAddr>,
    /// Bytes.
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    /// It is a port of another one (bridge, bond).
    pub(crate) enslaved: bool,
    pub(crate) stats: Stats64,
    /// Queues of a multi-queue TAP that somebody holds open.
    pub(crate) open_queues: u32,
}

/// One route of the main table that somebody configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KernelRoute {
    pub(crate) destination: IpNet,
    pub(crate) gateway: Option<IpAddr>,
    pub(crate) on_link: bool,
    /// Bytes.
    pub(crate) mtu: Option<u32>,
    pub(crate) metric: Option<u32>,
}

impl Netlink {
    /// All interfaces of the namespace.
    pub(crate) fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let message = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = self.dump("list interfaces", message)?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(link) => Some(read_link(link)),
                _ => None,
            })
            .collect())
    }

    /// The interface of that name.
    pub(crate) fn link(&mut self, name: &str) -> Result<Link, NetlinkError> {
        self.links()?
            .into_iter()
            .find(|link| link.name == name)
            .ok_or_else(|| NetlinkError::NoSuchLink(name.to_owned()))
    }

    /// The lasting addresses of an interface; those that the kernel made by
    /// itself (IPv6 link-local, or from a router's advertisement) are left out:
    /// the guest's kernel makes its own.
    pub(crate) fn addresses(&mut self, index: u32) -> Result<Vec<IpNet>, NetlinkError> {
        let message = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answers = self.dump("list addresses", message)?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewAddress(address) if address.header.index == index => {
                    read_address(&address)
                }
                _ => None,
            })
            .collect())
    }

    /// The routes of the main table that leave through an interface, without
    /// those that the kernel adds for an address.
    pub(crate) fn routes(&mut self, index: u32) -> Result<Vec<KernelRoute>, NetlinkError> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let answers = self.dump("list routes", RouteNetlinkMessage::GetRoute(message))?;
            routes.extend(answers.into_iter().filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(route) => read_route(&route, index),
                _ => None,
            }));
        }
        Ok(routes)
    }

    /// The destinations of all routes of the main table, the kernel's own too,
    /// but not those through the interface `except`.
    pub(crate) fn destinations_not_through(
        &mut self,
        except: &str,
    ) -> Result<Vec<IpNet>, NetlinkError> {
        let except = self.links()?.into_iter().find(|link| link.name == except);
        let index = except.map(|link| link.index);
        self.destinations(|route| index.is_none() || out_of(route) != index)
    }

    /// What the kernel takes to be on the link of an interface because of the
    /// interface's addresses.
    pub(crate) fn connected(&mut self, index: u32) -> Result<Vec<IpNet>, NetlinkError> {
        self.destinations(|route| {
            route.header.protocol == RouteProtocol::Kernel && out_of(route) == Some(index)
        })
    }

    fn destinations(
        &mut self,
        wanted: impl Fn(&RouteMessage) -> bool,
    ) -> Result<Vec<IpNet>, NetlinkError> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let answers = self.dump("list routes", RouteNetlinkMessage::GetRoute(message))?;
            found.extend(answers.into_iter().filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(route) if in_main_table(&route) && wanted(&route) => {
                    destination(&route)
                }
                _ => None,
            }));
        }
        Ok(found)
    }

    /// How many routing rules there are besides those of each namespace.
    pub(crate) fn rules(&mut self) -> Result<usize, NetlinkError> {
        let mut rules = 0;
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RuleMessage::default();
            message.header.family = family;
            let answers = self.dump("list rules", RouteNetlinkMessage::GetRule(message))?;
            let own = answers.iter().filter(|answer| match answer {
                // The kernel's: of the tables local, main and default.
                RouteNetlinkMessage::NewRule(rule) => {
                    let priority = |a: &RuleAttribute| match a {
                        RuleAttribute::Priority(priority) => Some(*priority),
                        _ => None,
                    };
                    let priority = rule.attributes.iter().find_map(priority);
                    !matches!(priority.unwrap_or(0), 0 | 32_766 | 32_767)
                }
                _ => false,
            });
            rules += own.count();
        }
        Ok(rules)
    }

    /// The permanent neighbours of an interface.
    pub(crate) fn neighbours(
        &mut self,
        index: u32,
    ) -> Result<Vec<(IpAddr, MacAddr)>, NetlinkError> {
        let message = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        let answers = self.dump("list neighbours", message)?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewNeighbour(neighbour)
                    if neighbour.header.ifindex == index =>
                {
                    read_neighbour(&neighbour)
                }
                _ => None,
            })
            .collect())
    }
}

fn read_link(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        enslaved: false,
        stats: Stats64::default(),
        open_queues: 0,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(octets) => link.mac = octets.try_into().ok().map(MacAddr),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Controller(index) => link.enslaved = index != 0,
            LinkAttribute::Stats64(stats) => link.stats = stats,
            LinkAttribute::LinkInfo(info) => link.open_queues = open_queues(&info),
            _ => {}
        }
    }
    link
}

fn open_queues(info: &[LinkInfo]) -> u32 {
    info.iter()
        .filter_map(|info| match info {
            LinkInfo::Data(InfoData::Tun(attributes)) => Some(attributes),
            _ => None,
        })
        .flatten()
        .filter(|attribute| attribute.kind() == IFLA_TUN_NUM_QUEUES)
        .find_map(|attribute| {
            let mut value = [0; 4];
            (attribute.value_len() == value.len()).then(|| {
                attribute.emit_value(&mut value);
                u32::from_ne_bytes(value)
            })
        })
        .unwrap_or(0)
}

fn read_address(message: &AddressMessage) -> Option<IpNet> {
    let mut local = None;
    let mut address = None;
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Flags(wide) => flags = *wide,
            _ => {}
        }
    }
    let ip = local.or(address)?;
    let own_link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    if own_link_local || !flags.contains(AddressFlags::Permanent) {
        return None;
    }
    IpNet::new(ip, message.header.prefix_len).ok()
}

fn out_of(message: &RouteMessage) -> Option<u32> {
    message.attributes.iter().find_map(|a| match a {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn in_main_table(message: &RouteMessage) -> bool {
    let table = message.attributes.iter().find_map(|a| match a {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    table.unwrap_or_else(|| message.header.table.into()) == u32::from(RouteHeader::RT_TABLE_MAIN)
        && message.header.kind == RouteType::Unicast
}

fn destination(message: &RouteMessage) -> Option<IpNet> {
    let given = message.attributes.iter().find_map(|a| match a {
        RouteAttribute::Destination(address) => ip(address),
        _ => None,
    });
    let any = match message.header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    IpNet::new(
        given.unwrap_or(any),
        message.header.destination_prefix_length,
    )
    .ok()
}

fn read_route(message: &RouteMessage, index: u32) -> Option<KernelRoute> {
    let by_itself = matches!(
        message.header.protocol,
        RouteProtocol::Kernel | RouteProtocol::Ra | RouteProtocol::IcmpRedirect
    );
    if by_itself || !in_main_table(message) || message.header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let mut route = KernelRoute {
        destination: destination(message)?,
        gateway: None,
        on_link: message.header.flags.contains(RouteFlags::Onlink),
        mtu: None,
        metric: None,
    };
    let mut out = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(oif) => out = Some(*oif),
            RouteAttribute::Gateway(address) => route.gateway = ip(address),
            RouteAttribute::Via(via) => route.gateway = via_address(via),
            RouteAttribute::Priority(metric) => route.metric = Some(*metric),
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            // Of several ways the first through this interface: the guest has
            // no use for a balance over interfaces that lead to one link.
            RouteAttribute::MultiPath(hops) if out.is_none() => {
                let hop = hops.iter().find(|h| h.interface_index == index)?;
                out = Some(hop.interface_index);
                route.gateway = hop.attributes.iter().find_map(|a| match a {
                    RouteAttribute::Gateway(address) => ip(address),
                    RouteAttribute::Via(via) => via_address(via),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    (out == Some(index)).then_some(route)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

fn via_address(via: &netlink_packet_route::route::RouteVia) -> Option<IpAddr> {
    use netlink_packet_route::route::RouteVia;
    match via {
        RouteVia::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteVia::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

fn read_neighbour(message: &NeighbourMessage) -> Option<(IpAddr, MacAddr)> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let mut address = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                address = Some(IpAddr::V4(*ip));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                address = Some(IpAddr::V6(*ip));
            }
            NeighbourAttribute::LinkLayerAddress(octets) => {
                mac = octets.as_slice().try_into().ok().map(MacAddr);
            }
            _ => {}
        }
    }
    Some((address?, mac?))
}
