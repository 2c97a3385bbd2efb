//! spherule-vmm: one process, one micro-VM (see ARCHITECTURE.md).

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Runs one micro-VM.
#[derive(Parser)]
#[command(name = "spherule-vmm", version)]
struct Cli {
    /// The VM's own directory; the control socket is made in it
    #[arg(long)]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Print which engines this host has, as JSON
    Probe,
}

fn main() -> ExitCode {
    // One line with its causes: it ends up in an error message of the daemon.
    match run(Instant::now(), Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("spherule-vmm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(started: Instant, cli: Cli) -> anyhow::Result<()> {
    if matches!(cli.command, Some(Command::Probe)) {
        println!("{}", serde_json::to_string(&vmm::probe())?);
        return Ok(());
    }
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_env_filter(
            tracing_subscriber::EnvFilter::builder()
                .with_default_directive(tracing::Level::INFO.into())
                .with_env_var("SPHERULE_LOG")
                .from_env_lossy(),
        )
        .init();
    let Some(dir) = cli.dir else {
        anyhow::bail!("--dir is missing: the daemon names the VM's directory");
    };
    Ok(vmm::serve(&dir, started)?)
}
