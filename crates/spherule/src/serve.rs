//! `spherule serve`: wires the daemon's parts together and serves its socket.
//!
//! The daemon may be killed at any moment: nothing is done at the end that the
//! next start would need. SIGTERM and SIGINT end it; pods go on.

mod cri;
mod engine;
mod guest;
mod image_gc;
mod network;
mod process;
mod socket;
mod streaming;

pub(crate) use network::CniDirs;

use crate::cli::EngineArg;
use crate::descriptors;
use anyhow::Context;
use futures_util::FutureExt;
use image_store::{ImageStore, Reference};
use pod_engine::PodEngine;
use pod_server::{Facts, Images, Pods};
use sandbox::Sandboxes;
use state_store::StateStore;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::num::NonZero;
use std::path::PathBuf;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;
use tracing::info;
use vm_launcher::Launcher;

/// How long the daemon waits for calls in progress when it is told to end.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// Arguments of `spherule serve`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory of records, images, disks and logs
    #[arg(long, default_value = "/var/lib/spherule")]
    root: PathBuf,
    /// Directory with the guest's vmlinux and initramfs.cpio
    #[arg(long, default_value = "/usr/lib/spherule")]
    guest: PathBuf,
    /// The VMM's program [default: spherule-vmm beside this program]
    #[arg(long)]
    vmm: Option<PathBuf>,
    /// Engine of pods that ask for none
    #[arg(long, value_enum, default_value_t = EngineArg::Auto)]
    engine: EngineArg,
    /// Directory with a folder for each registry, holding its hosts.toml
    #[arg(long, default_value = "/etc/spherule/certs.d")]
    registries: PathBuf,
    /// Registry of references that name none; without it they can be imported only
    #[arg(long)]
    default_registry: Option<String>,
    /// What goes before one-part names in the default registry, as "library"
    #[arg(long, requires = "default_registry")]
    default_namespace: Option<String>,
    /// File with credentials for registries, in the format of docker's config.json
    #[arg(long)]
    registry_credentials: Option<PathBuf>,
    /// Image that the kubelet should not collect; may be given several times
    #[arg(long)]
    pinned_image: Vec<Reference>,
    #[command(flatten)]
    image_gc: image_gc::ImageGcArgs,
    /// Size in MiB of the disk that a pod's containers write to, where the pod names
    /// no limit of ephemeral-storage; it takes of the node what is written
    #[arg(long, value_name = "MIB", default_value_t = sandbox::DEFAULT_SCRATCH_MIB)]
    scratch_size: u64,
    /// Where a kubelet's emptyDirs are: in the pod's VM, on disks that lie in their
    /// directories and in its memory, or in the directories themselves, which programs
    /// of the node then can read, and which the VM shares
    #[arg(long, value_enum, default_value_t = cri::EmptyDirs::Inside)]
    kubelet_empty_dirs: cri::EmptyDirs,
    /// Socket of the Kubernetes CRI [default: unix://<run>/cri.sock]
    #[arg(long)]
    listen: Option<String>,
    #[command(flatten)]
    network: network::NetworkArgs,
    /// Address where the kubelet's exec, attach and port-forward are served; port 0
    /// is one that the kernel chooses
    #[arg(long, default_value = "127.0.0.1:0")]
    streaming_address: SocketAddr,
    /// Certificate with its chain, in PEM, to serve them with TLS
    #[arg(long, requires = "streaming_tls_key")]
    streaming_tls_cert: Option<PathBuf>,
    /// The certificate's key, in PEM
    #[arg(long, requires = "streaming_tls_cert")]
    streaming_tls_key: Option<PathBuf>,
    /// How long a guest may take from its boot to its agent's greeting
    #[arg(long, value_parser = humantime::parse_duration, default_value = "120s")]
    agent_timeout: Duration,
    /// Most pods that are booted at a time; others wait their turn [default: twice
    /// the number of CPUs]
    #[arg(long)]
    parallel_boots: Option<NonZero<usize>>,
    /// Pause before the second restart of a container (the first is at once);
    /// doubles up to five minutes
    #[arg(long, value_parser = humantime::parse_duration, default_value = "10s")]
    restart_backoff: Duration,
    /// Directory of the host beneath which pods may have hostPath volumes and
    /// PersistentVolumes may lie; may be given several times
    #[arg(long, value_name = "DIR")]
    allow_host_path: Vec<PathBuf>,
    /// Added to the guests' kernel command line
    #[arg(long, default_value = "")]
    kernel_args: String,
}

/// Serves until SIGTERM or SIGINT.
pub(crate) fn run(run: PathBuf, args: Args) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(
            tracing_subscriber::EnvFilter::builder()
                .with_default_directive(tracing::Level::INFO.into())
                .from_env_lossy(),
        )
        .init();
    descriptors::raise();
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(serve(run, args))
}

async fn serve(run: PathBuf, args: Args) -> anyhow::Result<()> {
    let guest = guest::find(&args.guest)?;
    for dir in [&args.root, &run] {
        std::fs::create_dir_all(dir)
            .with_context(|| format!("cannot make the directory {}", dir.display()))?;
    }
    let root = args.root.canonicalize()?;
    let run = run.canonicalize()?;
    let state = StateStore::open(&root.join("state.redb"))?;
    let launcher = Launcher::new(engine::vmm_program(args.vmm.clone())?);
    let engines = engine::choose(&launcher, args.engine)?;
    info!(engine = %engines.chosen, reason = engines.reason, "engine chosen");

    let cri_socket = match &args.listen {
        Some(address) => socket::path_of(address)?,
        None => run.join("cri.sock"),
    };
    let network = args.network.wanted();
    let watermarks = args.image_gc.watermarks()?;
    let cri_config = cri::config(&args, &engines, &root, &run);
    let streaming_config = streaming::config(&args, &root)?;

    let config = image_store::Config {
        registries_dir: Some(args.registries),
        default_registry: args.default_registry,
        default_namespace: args.default_namespace,
        credentials_file: args.registry_credentials,
        pinned: args.pinned_image,
        ..image_store::Config::default()
    };
    let images = ImageStore::open(&root, state.clone(), config)?;
    let mut config = sandbox::Config::new(
        &root,
        &run,
        &guest.kernel,
        &guest.initramfs,
        launcher,
        engines.chosen,
    );
    config.extra_cmdline = args.kernel_args;
    config.scratch_mib = args.scratch_size;
    config.timeouts.agent_ready = args.agent_timeout;
    args.network.apply(&mut config);
    if let Some(boots) = args.parallel_boots {
        config.max_parallel_boots = boots.get();
    }
    let sandboxes = Sandboxes::open(config, &state, images.clone()).await?;
    let mut config = pod_engine::Config::new(&root);
    config.restart_backoff.base = args.restart_backoff;
    config.network = network;
    config.allow_host_paths = args.allow_host_path;
    let pods = PodEngine::open(sandboxes.clone(), images.clone(), &state, config).await?;

    // Only now are the images in use known.
    if let Some(marks) = watermarks {
        tokio::spawn(images.clone().keep_room(marks));
    }
    let facts = Facts {
        root: root.display().to_string(),
        run: run.display().to_string(),
        cri_socket: format!("unix://{}", cri_socket.display()),
        kernel: guest.kernel.display().to_string(),
        engine: engines.message(),
        engine_reason: engines.reason.clone(),
        engines: engines.infos,
        images: images.clone(),
        network,
        sandboxes: sandboxes.clone(),
    };
    let spool = root.join("spool");
    std::fs::create_dir_all(&spool)?;
    let end = ended().boxed().shared();
    let streaming = streaming::listen(streaming_config, &sandboxes).await?;
    let cri = cri::services(&sandboxes, &images, &state, streaming.urls(), cri_config);
    let own = socket::server()
        .add_service(pod_api::v1::pod_service_server::PodServiceServer::new(
            Pods::new(pods, sandboxes, facts, end.clone()),
        ))
        .add_service(
            pod_api::v1::image_service_server::ImageServiceServer::new(Images::new(images, spool))
                .max_decoding_message_size(2 * pod_api::IMPORT_CHUNK),
        );
    // The CRI's first: who waits for the other one finds both.
    let cri_listener = UnixListenerStream::new(socket::listen(&cri_socket)?);
    let own_socket = run.join(pod_api::SOCKET);
    let own_listener = UnixListenerStream::new(socket::listen(&own_socket)?);
    info!(socket = %own_socket.display(), cri = %cri_socket.display(), "serving");
    process::tell_ready();
    let reason = end.clone().map(|()| pod_server::ENDING.to_owned());
    tokio::select! {
        served = async {
            tokio::try_join!(
                own.serve_with_incoming_shutdown(own_listener, end.clone()),
                cri.serve_with_incoming_shutdown(cri_listener, end.clone()),
                streaming.serve(reason).map(Ok),
            )
        } => drop(served?),
        // Calls that are being answered get this long, and streams to hear the last
        // of it; a kubelet's events never end by themselves.
        () = async {
            end.clone().await;
            tokio::time::sleep(LAST_ANSWERS).await;
        } => {}
    }
    info!("ended; the pods go on");
    Ok(())
}

/// Resolves at SIGTERM or SIGINT.
async fn ended() {
    let (Ok(mut term), Ok(mut int)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    process::tell_stopping();
}
