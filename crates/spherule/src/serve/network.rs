//! Where pods get their network from.

use clap::ValueEnum;
use sandbox::Config;
use std::path::PathBuf;
use std::time::Duration;

/// The options about it.
#[derive(Debug, clap::Args)]
pub(crate) struct NetworkArgs {
    /// Where pods get their network from
    #[arg(long, value_enum, default_value_t = Source::Cni)]
    network: Source,
    #[command(flatten)]
    cni: CniDirs,
    /// Directory of the pods' network namespaces
    #[arg(long, default_value = "/run/netns")]
    netns_dir: PathBuf,
    /// How long one run of a CNI plugin may take
    #[arg(long, value_parser = humantime::parse_duration, default_value = "60s")]
    cni_timeout: Duration,
    /// Let pods send frames from addresses that are not theirs
    #[arg(long)]
    allow_spoofing: bool,
}

/// Where the CNI's parts lie.
#[derive(Debug, clap::Args)]
pub(crate) struct CniDirs {
    /// Directory of the CNI's network configurations; the first by name counts
    #[arg(long, default_value = "/etc/cni/net.d")]
    pub(crate) cni_conf_dir: PathBuf,
    /// Directory of CNI plugins; may be given several times
    #[arg(long, default_values = ["/opt/cni/bin", "/usr/lib/cni"])]
    pub(crate) cni_plugin_dir: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Source {
    /// The CNI plugins of this node
    Cni,
    /// Nowhere: pods have their loopback only
    None,
}

impl NetworkArgs {
    /// Pods get the node's network.
    pub(crate) fn wanted(&self) -> bool {
        self.network == Source::Cni
    }

    /// Tells the sandboxes. Also where pods get none: those of an earlier start of
    /// the daemon may have one, which is to be taken away.
    pub(crate) fn apply(self, config: &mut Config) {
        let network = &mut config.network;
        network.conf_dir = self.cni.cni_conf_dir;
        network.plugin_dirs = self.cni.cni_plugin_dir;
        network.netns_dir = self.netns_dir;
        network.plugin_timeout = self.cni_timeout;
        network.anti_spoofing = !self.allow_spoofing;
    }
}
