//! `spherule network`: the node's network, for those that have none. Works without
//! the daemon, which sees a new configuration by itself.

use super::output;
use crate::serve::CniDirs;
use anyhow::Context;
use ipnet::{Ipv4Net, Ipv6Net};
use pod_network::default_list::{self, Options};
use std::path::PathBuf;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Write a network configuration for this node: a bridge, addresses, host ports
    Init(Box<InitArgs>),
}

#[derive(Debug, clap::Args)]
pub(crate) struct InitArgs {
    #[command(flatten)]
    cni: CniDirs,
    /// Name of the bridge, which is made with the first pod
    #[arg(long, default_value = "spherule0")]
    bridge: String,
    /// Where IPv4 addresses come from, or `none`
    #[arg(long, default_value = "10.88.0.0/16", value_parser = subnet::<Ipv4Net>)]
    ipv4: Subnet<Ipv4Net>,
    /// Where IPv6 addresses come from, or `none`
    #[arg(long, default_value = "fd88:5f3e::/64", value_parser = subnet::<Ipv6Net>)]
    ipv6: Subnet<Ipv6Net>,
    /// Bytes of the largest packet [default: the plugins' choice]
    #[arg(long)]
    mtu: Option<u32>,
    /// Let pods through a firewall of this host that forwards nothing
    #[arg(long)]
    firewall: bool,
    /// Where the addresses given are recorded [default: /var/lib/cni/networks]
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Replace a configuration of ours that differs, and come beside others
    #[arg(long)]
    force: bool,
}

/// A subnet, or none.
#[derive(Debug, Clone)]
struct Subnet<T>(Option<T>);

fn subnet<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<Subnet<T>, String> {
    if text == "none" {
        return Ok(Subnet(None));
    }
    let subnet = text.parse();
    subnet
        .map(|net| Subnet(Some(net)))
        .map_err(|error| format!("{error}; write for example 10.88.0.0/16, fd00::/64 or none"))
}

/// Does it.
pub(crate) fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Init(args) => init(*args),
    }
}

fn init(args: InitArgs) -> anyhow::Result<()> {
    let options = Options {
        bridge: args.bridge,
        ipv4: args.ipv4.0,
        ipv6: args.ipv6.0,
        mtu: args.mtu,
        firewall: args.firewall,
        bandwidth: true,
        data_dir: args.data_dir,
        force: args.force,
    };
    let written = default_list::write(&args.cni.cni_conf_dir, &args.cni.cni_plugin_dir, &options)
        .context("no network configuration was written")?;
    let path = written.path.display();
    let did = if written.unchanged {
        "was there already, just so"
    } else {
        "written"
    };
    output::print(format!("{path} {did}"))?;
    let nets = [
        options.ipv4.map(|net| net.trunc().to_string()),
        options.ipv6.map(|net| net.trunc().to_string()),
    ];
    let nets: Vec<String> = nets.into_iter().flatten().collect();
    output::print(format!(
        "Pods get addresses of {} on the bridge {}, which leads to them from this host;",
        nets.join(" and "),
        options.bridge
    ))?;
    output::print("what they send elsewhere goes out under this host's own address.")?;
    if let Some(other) = written.overridden_by {
        let other = other.display();
        output::print(format!(
            "It is without effect: {other} comes first by name."
        ))?;
    }
    Ok(())
}
