//! A network for nodes that have none: bridge, host-local, portmap of the
//! reference plugins, IPv4 and IPv6, masqueraded.

use crate::cni::directory::Directory;
use crate::cni::plugin::{self, PluginFailure};
use crate::netlink::{Netlink, NetlinkError};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::{Value, json};
use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

/// The file's name. Low, so that it is first where it is alone with later ones.
pub const FILE_NAME: &str = "10-spherule.conflist";

/// What the network is to be like.
#[derive(Debug, Clone)]
pub struct Options {
    /// The bridge that is made for it, at most 15 letters.
    pub bridge: String,
    /// Where IPv4 addresses come from; none for a network without.
    pub ipv4: Option<Ipv4Net>,
    /// Where IPv6 addresses come from; none for a network without.
    pub ipv6: Option<Ipv6Net>,
    /// Bytes; as the plugins choose where none is given.
    pub mtu: Option<u32>,
    /// Adds the plugin that lets pods through a host firewall that forwards
    /// nothing.
    pub firewall: bool,
    /// Adds the plugin that limits rates, where it is installed.
    pub bandwidth: bool,
    /// Where host-local keeps the addresses given; its own default
    /// (/var/lib/cni/networks) where none is given.
    pub data_dir: Option<PathBuf>,
    /// Replaces a configuration of ours that differs, and comes beside others.
    pub force: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            bridge: "spherule0".into(),
            ipv4: Ipv4Net::new(Ipv4Addr::new(10, 88, 0, 0), 16).ok(),
            ipv6: Ipv6Net::new(Ipv6Addr::new(0xfd88, 0x5f3e, 0, 0, 0, 0, 0, 0), 64).ok(),
            mtu: None,
            firewall: false,
            bandwidth: true,
            data_dir: None,
            force: false,
        }
    }
}

/// The configuration was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitError {
    /// Another configuration is there.
    #[error(
        "{} is there already; this node has a network, or use --force to write {FILE_NAME} all the same",
        .0.display()
    )]
    Exists(PathBuf),
    /// A plugin that the network needs is not installed.
    #[error(
        "the network needs CNI plugin {name:?} (Debian: apt-get install containernetworking-plugins)"
    )]
    Plugin {
        /// Which.
        name: &'static str,
        /// Where it was looked for.
        #[source]
        source: PluginFailure,
    },
    /// No addresses at all.
    #[error("a network needs an IPv4 or an IPv6 subnet")]
    NoSubnet,
    /// The subnet is too small for a gateway and a pod.
    #[error("subnet {0} is too small for a gateway and a pod")]
    TooSmall(IpNet),
    /// The bridge's name does not fit.
    #[error("{0:?} is no name for a bridge; at most 15 letters and digits")]
    Bridge(String),
    /// The host reaches something else by these addresses.
    #[error(
        "subnet {subnet} overlaps with {route}, which this host has a route to; choose another subnet"
    )]
    Overlap {
        /// The subnet asked for.
        subnet: IpNet,
        /// The host's route.
        route: IpNet,
    },
    /// The host's routes cannot be read.
    #[error("cannot read the host's routes")]
    Routes(#[source] NetlinkError),
    /// The file.
    #[error("cannot write {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The file.
    pub path: PathBuf,
    /// It was there already, just so.
    pub unchanged: bool,
    /// Another file comes first by name, so that it is not this one that counts.
    pub overridden_by: Option<PathBuf>,
}

/// Writes the configuration into `conf_dir`.
///
/// # Errors
///
/// Another configuration is there and `force` is not set, a plugin is missing
/// in `plugin_dirs`, the options make no network, or the file cannot be written.
pub fn write(
    conf_dir: &Path,
    plugin_dirs: &[PathBuf],
    options: &Options,
) -> Result<Written, InitError> {
    let find = |name: &'static str| match plugin::find(name, plugin_dirs) {
        Ok(path) => Ok(path),
        Err(source) => Err(InitError::Plugin { name, source }),
    };
    check(options)?;
    for name in ["bridge", "host-local", "portmap"] {
        find(name)?;
    }
    if options.firewall {
        find("firewall")?;
    }
    let bandwidth = options.bandwidth && find("bandwidth").is_ok();
    let path = conf_dir.join(FILE_NAME);
    let mut text = serde_json::to_string_pretty(&content(options, bandwidth)).unwrap_or_default();
    text.push('\n');
    let unchanged = fs::read_to_string(&path).is_ok_and(|old| old == text);
    let others = others(conf_dir).map_err(|source| InitError::Write {
        path: path.clone(),
        source,
    })?;
    if !options.force {
        let ours_differs = !unchanged && path.exists();
        let in_the_way = ours_differs.then_some(&path).or(others.first());
        if let Some(other) = in_the_way {
            return Err(InitError::Exists(other.clone()));
        }
    }
    if !unchanged {
        overlap(options)?;
        replace(conf_dir, &path, &text).map_err(|source| InitError::Write {
            path: path.clone(),
            source,
        })?;
    }
    let directory = Directory::new(conf_dir.to_owned());
    let first = directory.contents().ok().and_then(|contents| {
        let (first, _) = contents.list.as_ref()?;
        Some(first.clone())
    });
    Ok(Written {
        overridden_by: first.filter(|first| *first != path),
        path,
        unchanged,
    })
}

fn check(options: &Options) -> Result<(), InitError> {
    let name = &options.bridge;
    let fits = (1..=15).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    if !fits {
        return Err(InitError::Bridge(name.clone()));
    }
    let subnets = subnets(options);
    if subnets.is_empty() {
        return Err(InitError::NoSubnet);
    }
    // Network, gateway, one pod, broadcast.
    match subnets
        .iter()
        .find(|net| net.max_prefix_len() - net.prefix_len() < 2)
    {
        Some(small) => Err(InitError::TooSmall(*small)),
        None => Ok(()),
    }
}

fn subnets(options: &Options) -> Vec<IpNet> {
    let v4 = options.ipv4.map(|net| IpNet::V4(net.trunc()));
    let v6 = options.ipv6.map(|net| IpNet::V6(net.trunc()));
    v4.into_iter().chain(v6).collect()
}

/// The list, in the newest version that Debian 12's plugins speak.
fn content(options: &Options, bandwidth: bool) -> Value {
    let ranges: Vec<Value> = subnets(options)
        .iter()
        .map(|net| json!([{ "subnet": net.to_string() }]))
        .collect();
    let mut ipam = json!({ "type": "host-local", "ranges": ranges });
    if let (Some(dir), Some(ipam)) = (&options.data_dir, ipam.as_object_mut()) {
        ipam.insert("dataDir".into(), dir.display().to_string().into());
    }
    let mut bridge = json!({
        "type": "bridge",
        "bridge": options.bridge,
        "isGateway": true,
        "isDefaultGateway": true,
        "ipMasq": true,
        "hairpinMode": true,
        "ipam": ipam,
    });
    if let (Some(mtu), Some(bridge)) = (options.mtu, bridge.as_object_mut()) {
        bridge.insert("mtu".into(), mtu.into());
    }
    let mut plugins = vec![
        bridge,
        json!({ "type": "portmap", "capabilities": { "portMappings": true } }),
    ];
    if options.firewall {
        plugins.push(json!({ "type": "firewall" }));
    }
    if bandwidth {
        plugins.push(json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } }));
    }
    // CHECK of Debian 12's portmap looks for a pod's IPv4 rules among the IPv6 ones
    // as well, and so fails for every pod that has a port.
    json!({ "cniVersion": "1.0.0", "name": "spherule", "disableCheck": true, "plugins": plugins })
}

/// Configurations of somebody else, valid or not: a broken one is still the
/// sign of a network that is being set up.
fn others(conf_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(conf_dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut others = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let named = matches!(
            path.extension().and_then(|e| e.to_str()),
            Some("conflist" | "conf" | "json")
        );
        if named && path.file_name().is_none_or(|name| name != FILE_NAME) {
            others.push(path);
        }
    }
    others.sort();
    Ok(others)
}

/// Refuses a subnet by which the host reaches something else; the bridge's own
/// route, from an earlier time, does not count.
fn overlap(options: &Options) -> Result<(), InitError> {
    let routes = Netlink::open()
        .and_then(|mut netlink| netlink.destinations_not_through(&options.bridge))
        .map_err(InitError::Routes)?;
    for subnet in subnets(options) {
        let overlapping = routes.iter().find(|route| {
            route.prefix_len() > 0 && (route.contains(&subnet) || subnet.contains(*route))
        });
        if let Some(route) = overlapping {
            return Err(InitError::Overlap {
                subnet,
                route: *route,
            });
        }
    }
    Ok(())
}

/// Whole or not at all: a reader never sees half a configuration.
fn replace(directory: &Path, path: &Path, text: &str) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let temporary = path.with_extension("conflist.new");
    let mut file = fs::File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}
