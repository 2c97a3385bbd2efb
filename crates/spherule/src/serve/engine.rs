//! Which engine pods get: measured once, by the VMM's own program.

use crate::cli::EngineArg;
use anyhow::{Context, bail};
use pod_api::v1;
use sandbox::Engine;
use std::path::PathBuf;
use vm_launcher::Launcher;
use vm_spec::EngineName;

/// The choice and what it was made from.
#[derive(Debug)]
pub(crate) struct Engines {
    pub(crate) chosen: Engine,
    pub(crate) reason: String,
    pub(crate) infos: Vec<v1::EngineInfo>,
}

impl Engines {
    /// The choice as the API names it.
    pub(crate) fn message(&self) -> v1::Engine {
        match self.chosen {
            Engine::Kvm => v1::Engine::Kvm,
            Engine::Qemu => v1::Engine::Qemu,
        }
    }
}

/// The VMM's program: the one given, or the one beside ours.
pub(crate) fn vmm_program(given: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    let path = match given {
        Some(path) => path,
        None => std::env::current_exe()
            .context("cannot tell where this program lies; name the VMM with --vmm")?
            .with_file_name("spherule-vmm"),
    };
    if !path.is_file() {
        bail!("there is no VMM at {}; name it with --vmm", path.display());
    }
    Ok(path)
}

/// Measures this machine, and takes the engine asked for or the measured one. An
/// engine that cannot run here is refused with what is missing.
pub(crate) fn choose(launcher: &Launcher, asked: EngineArg) -> anyhow::Result<Engines> {
    let probe = launcher
        .probe()
        .context("cannot find out which engines this machine has")?;
    let (kvm, qemu) = (&probe.kvm, &probe.qemu);
    let (chosen, reason) = match asked {
        EngineArg::Auto => {
            let engine = match probe.choice.engine {
                EngineName::Kvm => Engine::Kvm,
                EngineName::Qemu => Engine::Qemu,
            };
            (engine, format!("auto: {}", probe.choice.reason))
        }
        EngineArg::Kvm => (Engine::Kvm, "asked for by --engine kvm".into()),
        EngineArg::Qemu => (Engine::Qemu, "asked for by --engine qemu".into()),
    };
    let (usable, detail) = match chosen {
        Engine::Kvm => (kvm.usable, &kvm.detail),
        Engine::Qemu => (qemu.usable, &qemu.detail),
    };
    if !usable && asked == EngineArg::Auto {
        bail!(
            "no engine can run on this machine: kvm: {}; qemu: {}",
            kvm.detail,
            qemu.detail
        );
    }
    if !usable {
        bail!("--engine {chosen}: {detail}");
    }
    if probe.choice.warning && asked == EngineArg::Auto {
        tracing::warn!("{reason}");
    }
    let qemu_found = format!("QEMU {} at {}", qemu.version, qemu.path);
    let infos = vec![
        v1::EngineInfo {
            engine: v1::Engine::Kvm.into(),
            usable: kvm.usable,
            detail: kvm.detail.clone(),
        },
        v1::EngineInfo {
            engine: v1::Engine::Qemu.into(),
            usable: qemu.usable,
            detail: if qemu.usable {
                qemu_found
            } else {
                qemu.detail.clone()
            },
        },
    ];
    Ok(Engines {
        chosen,
        reason,
        infos,
    })
}
