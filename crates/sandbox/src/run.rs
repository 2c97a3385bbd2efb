//! Making a sandbox: each resource is put on the recorded undo stack before it
//! comes to exist.

use crate::clock::{Stopwatch, nanos, now_ns};
use crate::error::{SandboxError, chain};
use crate::guest::{GuestClient, GuestError};
use crate::live::Live;
use crate::network::Attached;
use crate::record::{Sandbox, SandboxState, Stage, Step, VmmId, stages};
use crate::registry::Entry;
use crate::spec::{PathVolume, SandboxSpec};
use crate::vmm::{Vmm, open_append, open_read};
use crate::volumes::{self, VolumeSource};
use crate::{Inner, cgroup, death, name_files, network, scratch, undo, vm_plan, watch};
use guest_api::proto::{client_message::Call, response};
use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use vm_spec::proto::{Bay, BootResponse, Extent};

/// Name of the scratch disk's extent.
pub(crate) const SCRATCH_EXTENT: &str = "scratch";
/// Pause between two attempts to reach the agent, at first and at most.
const KNOCK: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));
/// Longest wait for the answer to one attempt.
const KNOCK_LIMIT: Duration = Duration::from_secs(15);
/// Bytes of entropy for the guest.
const ENTROPY: usize = 64;

/// Reserves the id and the name, at once.
pub(crate) fn reserve(inner: &Arc<Inner>, spec: SandboxSpec) -> Result<Arc<Entry>, SandboxError> {
    vm_plan::check_sandbox(&spec, &inner.config.paths(&spec.id))?;
    let engine = spec.engine.unwrap_or(inner.config.engine);
    let id = spec.id.clone();
    let sandbox = Sandbox {
        spec,
        engine,
        state: SandboxState::Creating,
        reason: None,
        created_at_ns: now_ns(),
        ready_at_ns: 0,
        finished_at_ns: 0,
        stages: Vec::new(),
        kernel_release: String::new(),
        engine_pid: 0,
        in_cgroup_parent: false,
        network: None,
        pod_ips: Vec::new(),
        block_volumes: Vec::new(),
        empty_dirs: BTreeMap::new(),
        steps: Vec::new(),
    };
    let entry = Arc::new(inner.sandbox_entry(&id, sandbox));
    inner.registry.reserve(&entry)?;
    Ok(entry)
}

/// Makes what was reserved; undoes all of it if that fails.
pub(crate) async fn make(inner: &Arc<Inner>, entry: &Arc<Entry>) -> Result<Sandbox, SandboxError> {
    let _operation = entry.operation.lock().await;
    if inner.registry.get(&entry.id).is_err() {
        return Err(SandboxError::Cancelled(entry.id.clone()));
    }
    // Its first record.
    if let Err(error) = entry.record.update(|_| ()).await {
        inner.registry.remove(&entry.id);
        return Err(error);
    }
    inner.announce_sandbox(&entry.id, SandboxState::Creating);
    match try_make(inner, entry).await {
        Ok(()) => Ok(entry.record.get()),
        Err(error) => {
            undo::abandon(inner, entry, &chain(&error)).await;
            Err(error)
        }
    }
}

async fn try_make(inner: &Arc<Inner>, entry: &Arc<Entry>) -> Result<(), SandboxError> {
    // Fair: whoever asked first is made first.
    let _turn = tokio::select! {
        turn = inner.boots.acquire() => turn,
        error = cancelled(entry) => return Err(error),
    };
    begin(inner, entry).await?;
    // Neither is given up for the other: what is undone must have ended.
    let (network, vmm) = tokio::join!(network::attach(inner, entry), make_vmm(inner, entry));
    let (mut network, (live, clock)) = (network?, vmm?);
    check_cancelled(entry)?;
    let events = watch::spawn(inner, entry, &live);
    let booted = boot(inner, entry, &live, &mut network).await?;
    let (request, running) = (nanos(booted.request_ns), nanos(booted.running_ns));
    add_stages(
        entry,
        [
            clock.stage_of(stages::BOOT_REQUEST, 0, request),
            clock.stage_of(stages::FIRST_INSTRUCTION, 0, running),
        ],
    )
    .await?;
    // Attached while the guest boots.
    let scratch = attach_scratch(entry, &live).await?;

    let guest_clock = Stopwatch::start();
    let (guest, guest_events) = reach_agent(inner, entry, &live).await?;
    add_stages(entry, [guest_clock.stage(stages::AGENT_READY)]).await?;
    live.set_guest(Some(Arc::new(guest)));
    // The watcher has the connection from here on, and makes another if it breaks.
    let _ = events.send(guest_events);

    set_up(inner, entry, &live, &scratch, &network).await?;
    for PathVolume { volume, at } in entry.record.read(|s| s.spec.block_volumes.clone()) {
        check_cancelled(entry)?;
        volumes::attach(inner, entry, &live, volume, VolumeSource::Path(at)).await?;
    }
    entry.record.update(|s| s.ready_at_ns = now_ns()).await?;
    inner
        .set_sandbox_state(entry, SandboxState::Ready, None)
        .await?;
    // The watcher settles the death of a Ready sandbox only; one that came just
    // before is ours.
    if let Some(cause) = live.cause() {
        return Err(SandboxError::VmDied {
            id: entry.id.clone(),
            cause,
        });
    }
    Ok(())
}

fn check_cancelled(entry: &Entry) -> Result<(), SandboxError> {
    if *entry.cancel.borrow() {
        return Err(SandboxError::Cancelled(entry.id.clone()));
    }
    Ok(())
}

/// Waits until a stop is asked for.
async fn cancelled(entry: &Entry) -> SandboxError {
    let mut cancel = entry.cancel.subscribe();
    let _ = cancel.wait_for(|asked| *asked).await;
    SandboxError::Cancelled(entry.id.clone())
}

async fn add_stages(
    entry: &Entry,
    stages: impl IntoIterator<Item = Stage>,
) -> Result<(), SandboxError> {
    entry
        .record
        .update(|sandbox| sandbox.stages.extend(stages))
        .await
}

/// Records what is made first. The network is undone last: where a plugin cannot
/// take it away, nothing else waits for that.
async fn begin(inner: &Arc<Inner>, entry: &Arc<Entry>) -> Result<(), SandboxError> {
    let network = network::plan(inner, entry).await?;
    entry
        .record
        .update(|sandbox| {
            sandbox
                .steps
                .extend(network.is_some().then_some(Step::Network));
            let files = [Step::StateDir, Step::RunDir, Step::Scratch];
            sandbox.steps.extend(files);
            sandbox.network = network;
        })
        .await
}

/// The files, then the VMM, and the time of its start.
async fn make_vmm(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
) -> Result<(Arc<Live>, Stopwatch), SandboxError> {
    make_files(inner, entry).await?;
    check_cancelled(entry)?;
    let clock = Stopwatch::start();
    let live = start_vmm(inner, entry, &clock).await?;
    Ok((live, clock))
}

/// The directories and the scratch disk.
async fn make_files(inner: &Arc<Inner>, entry: &Arc<Entry>) -> Result<(), SandboxError> {
    let paths = inner.config.paths(&entry.id);
    let (state, run) = (paths.state.clone(), paths.run.clone());
    crate::blocking(&entry.id, move || {
        make_dir(&state).and_then(|()| make_dir(&run))
    })
    .await??;
    let clock = Stopwatch::start();
    let size = entry
        .record
        .read(|s| s.spec.scratch_mib)
        .unwrap_or(inner.config.scratch_mib);
    let (root, target) = (inner.config.root.clone(), paths.scratch());
    crate::blocking(&entry.id, move || scratch::make(&root, size, &target)).await??;
    add_stages(entry, [clock.stage(stages::SCRATCH)]).await
}

fn make_dir(path: &Path) -> Result<(), SandboxError> {
    // What lies there belongs to no record: nobody else has this id.
    undo::remove_dir_now(path)?;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|e| SandboxError::file("cannot make", path, e))
}

async fn start_vmm(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    clock: &Stopwatch,
) -> Result<Arc<Live>, SandboxError> {
    let paths = inner.config.paths(&entry.id);
    let (spec, engine) = entry.record.read(|s| (s.spec.clone(), s.engine));
    let in_parent = !spec.cgroup_parent.is_empty()
        && crate::blocking(&entry.id, move || cgroup::fits_parent(&spec, engine)).await?;
    entry
        .record
        .update(|sandbox| {
            sandbox.in_cgroup_parent = in_parent;
            sandbox.steps.push(Step::Vmm(None));
        })
        .await?;
    let group = entry.record.read(cgroup::of);
    let (vmm, process) = Vmm::start(&inner.config.launcher, &entry.id, &paths, group).await?;
    let id = VmmId {
        pid: process.pid(),
        start_time: process.start_time(),
    };
    entry
        .record
        .update(|sandbox| {
            for step in &mut sandbox.steps {
                if *step == Step::Vmm(None) {
                    *step = Step::Vmm(Some(id));
                }
            }
        })
        .await?;
    let reached = vmm.ready(&process.process).await;
    if reached.is_ok() {
        add_stages(entry, [clock.stage(stages::VMM_START)]).await?;
    }
    let live = Arc::new(Live::new(&entry.id, process, vmm, paths));
    entry.set_live(Some(Arc::clone(&live)));
    reached.map(|()| live)
}

async fn boot(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    live: &Live,
    network: &mut Attached,
) -> Result<BootResponse, SandboxError> {
    let config = &inner.config;
    let mut request = entry
        .record
        .read(|s| vm_plan::boot_request(&s.spec, s.engine, config));
    request.nics = network.devices();
    let taps = network.take_taps();
    let (kernel, initramfs) = (config.kernel.clone(), config.initramfs.clone());
    let log = live.paths.kernel_log();
    let open = move || -> Result<_, SandboxError> {
        Ok((
            open_read("cannot open the guest kernel", &kernel)?,
            open_read("cannot open the guest initramfs", &initramfs)?,
            open_append(&log)?,
        ))
    };
    let (kernel, initramfs, log) = crate::blocking(&entry.id, open).await??;
    let booted = live.vmm.boot(request, kernel, initramfs, log, taps).await;
    let booted = live.or_death(booted).await?;
    // For people and measurements only: no fault if it cannot be had.
    if let Ok(state) = live.vmm.state().await {
        entry
            .record
            .update(|s| s.engine_pid = state.engine_pid)
            .await?;
    }
    Ok(booted)
}

async fn attach_scratch(entry: &Entry, live: &Live) -> Result<Extent, SandboxError> {
    let path = live.paths.scratch();
    let open = move || {
        let opened = std::fs::File::options().read(true).write(true).open(&path);
        opened.map_err(|e| SandboxError::file("cannot open", &path, e))
    };
    let file = crate::blocking(&entry.id, open).await??;
    let extent = live
        .vmm
        .attach_disk(SCRATCH_EXTENT, Bay::Writable, file)
        .await;
    let extent = live.or_death(extent).await?;
    check_cancelled(entry)?;
    Ok(extent)
}

/// Knocks until the agent answers, the VM dies, a stop is asked for, or the
/// time is up.
async fn reach_agent(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    live: &Live,
) -> Result<(GuestClient, watch::GuestEvents), SandboxError> {
    let limit = inner.config.timeouts.agent_ready;
    let vsock = live.paths.vsock();
    tokio::select! {
        result = tokio::time::timeout(limit, knock(&vsock)) => match result {
            Ok(result) => result.map_err(|error| SandboxError::Guest {
                id: entry.id.clone(),
                what: "greet",
                code: vm_launcher::Code::Unavailable,
                message: chain(&error),
            }),
            Err(_) => Err(SandboxError::AgentTimeout {
                id: entry.id.clone(),
                what: "come up",
                seconds: limit.as_secs(),
                last_words: death::last_words(&live.paths),
            }),
        },
        cause = live.died() => Err(SandboxError::VmDied { id: entry.id.clone(), cause }),
        error = cancelled(entry) => Err(error),
    }
}

/// Connects to the agent, again and again until it listens. An agent of another
/// protocol version never will be right, so that is an error.
pub(crate) async fn knock(vsock: &Path) -> Result<(GuestClient, watch::GuestEvents), GuestError> {
    let mut pause = KNOCK.0;
    loop {
        let deadline = Instant::now() + KNOCK_LIMIT;
        match tokio::time::timeout_at(deadline, GuestClient::connect(vsock)).await {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(error @ GuestError::Wire(wire::WireError::Version { .. }))) => {
                return Err(error);
            }
            // Not listening yet.
            Ok(Err(_)) | Err(_) => {}
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(KNOCK.1);
    }
}

async fn set_up(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    live: &Live,
    scratch: &Extent,
    network: &Attached,
) -> Result<(), SandboxError> {
    let clock = Stopwatch::start();
    let mut entropy = vec![0; ENTROPY];
    rustix::rand::getrandom(&mut entropy[..], rustix::rand::GetRandomFlags::empty())
        .map_err(|e| SandboxError::file("cannot read", "/dev/urandom", e.into()))?;
    let now = u64::try_from(now_ns()).unwrap_or(0);
    let mut request = entry
        .record
        .read(|s| vm_plan::setup(s, scratch, now, entropy));
    request.nics = network.interfaces();
    let more = network.sysctls(request.sysctls.keys());
    request.sysctls.extend(more);
    let (dns, has_network) = entry
        .record
        .read(|s| (s.spec.dns.clone(), s.network.is_some()));
    let others = if has_network && !dns.alone {
        network.dns().unwrap_or_else(name_files::of_node)
    } else {
        Default::default()
    };
    request.resolv_conf = name_files::resolv_conf(others, dns);
    let what = "set up the sandbox";
    let answer = tokio::select! {
        answer = live.call(what, Call::SetupSandbox(request), &inner.config.timeouts) => answer?,
        error = cancelled(entry) => return Err(error),
    };
    let response::Result::SetupSandbox(answer) = answer else {
        return Err(live.wrong_answer(what));
    };
    let release = crate::guest::printable(&answer.kernel_release);
    entry
        .record
        .update(|sandbox| {
            sandbox.kernel_release = release;
            sandbox.stages.push(Stage {
                name: stages::GUEST_KERNEL.into(),
                started_at_ns: now_ns().saturating_sub(nanos(answer.ready_ns)),
                duration_ns: nanos(answer.init_started_ns),
            });
            sandbox.stages.push(clock.stage(stages::SETUP));
        })
        .await
}
