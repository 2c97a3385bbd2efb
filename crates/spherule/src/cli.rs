//! The command line: what can be said, and which file does it.

mod client;
mod copy;
mod debug;
mod images;
mod info;
mod inspect;
mod list;
mod logs;
mod network;
mod objects;
mod output;
mod port_forward;
mod run;
mod session;
mod stop;
mod system;
mod terminal;

pub(crate) use output::is_unread;

use crate::serve;
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Runs Kubernetes pods, each in a micro-VM of its own.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true)]
pub(crate) struct Cli {
    /// Directory of the daemon's sockets
    #[arg(
        long,
        global = true,
        env = "SPHERULE_RUN",
        default_value = "/run/spherule"
    )]
    run: PathBuf,
    /// How to print answers
    #[arg(long, short, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

/// How answers are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

/// What runs a pod's guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EngineArg {
    /// Measure this machine, then choose
    Auto,
    /// Our own VMM on /dev/kvm
    Kvm,
    /// QEMU without hardware virtualization
    Qemu,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the node's daemon
    Serve(Box<serve::Args>),
    /// Show the daemon, its network, its engine and why it chose that one
    Info,
    /// Give a node without a network one
    #[command(subcommand)]
    Network(network::Command),
    /// Run the pod of a manifest, and follow its output to its end
    Run(run::Args),
    /// List pods
    Ps(list::Args),
    /// Print what a pod's containers wrote
    Logs(logs::Args),
    /// Run a command in a container of a pod
    Exec(session::ExecArgs),
    /// Be the terminal, or the input and output, of a running container
    Attach(session::AttachArgs),
    /// Add a container to a running pod, to look into it
    Debug(debug::Args),
    /// Copy files and directories into a container or out of it
    Cp(copy::Args),
    /// Listen on local ports that are a pod's
    PortForward(port_forward::Args),
    /// Print everything known of pods, as JSON
    Inspect(inspect::Args),
    /// Stop pods: containers end in their grace period, then the VM
    Stop(stop::StopArgs),
    /// Remove stopped pods with all that is theirs
    Rm(stop::RmArgs),
    /// Create or change ConfigMaps, Secrets, PersistentVolumes and claims on these
    Apply(objects::ApplyArgs),
    /// List ConfigMaps, Secrets, PersistentVolumes and claims
    Objects(objects::ListArgs),
    /// Delete ConfigMaps, Secrets, PersistentVolumes or claims
    Delete(objects::DeleteArgs),
    /// List images
    Images,
    /// Pull an image from its registry
    Pull(images::PullArgs),
    /// Import the images of an OCI layout or docker archive
    Import(images::ImportArgs),
    /// Remove images
    Rmi(images::RmiArgs),
    /// Show and make room on the node's disk
    #[command(subcommand)]
    System(system::Command),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Runs one command to its end; the code is the process's.
pub(crate) fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    if let Command::Completions { shell } = cli.command {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "spherule", &mut script);
        std::io::stdout().write_all(&script)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Command::Serve(args) = cli.command {
        serve::run(cli.run, *args)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Command::Network(command) = cli.command {
        network::run(command)?;
        return Ok(ExitCode::SUCCESS);
    }
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(ask(cli))
}

/// The commands that ask the daemon.
async fn ask(cli: Cli) -> anyhow::Result<ExitCode> {
    let daemon = client::Daemon::connect(&cli.run).await?;
    let output = cli.output;
    match cli.command {
        Command::Info => info::run(daemon, output).await?,
        Command::Run(args) => return run::run(daemon, args).await,
        Command::Ps(args) => list::run(daemon, args, output).await?,
        Command::Logs(args) => logs::run(daemon, args).await?,
        Command::Exec(args) => return session::exec(daemon, args).await,
        Command::Attach(args) => return session::attach(daemon, args).await,
        Command::Debug(args) => return debug::run(daemon, args).await,
        Command::Cp(args) => return copy::run(daemon, args).await,
        Command::PortForward(args) => port_forward::run(daemon, args).await?,
        Command::Inspect(args) => inspect::run(daemon, args).await?,
        Command::Stop(args) => stop::stop(daemon, args).await?,
        Command::Rm(args) => stop::rm(daemon, args).await?,
        Command::Apply(args) => objects::apply(daemon, args).await?,
        Command::Objects(args) => objects::list(daemon, args, output).await?,
        Command::Delete(args) => objects::delete(daemon, args).await?,
        Command::Images => images::list(daemon, output).await?,
        Command::Pull(args) => images::pull(daemon, args, output).await?,
        Command::Import(args) => images::import(daemon, args, output).await?,
        Command::Rmi(args) => images::remove(daemon, args).await?,
        Command::System(command) => system::run(daemon, command, output).await?,
        // Dispatched before: they need no daemon.
        Command::Serve(_) | Command::Network(_) | Command::Completions { .. } => {}
    }
    Ok(ExitCode::SUCCESS)
}
