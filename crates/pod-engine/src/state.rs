//! The pure part of a pod's life: what its record becomes when something is
//! seen, and what is to be done next. No I/O, no clock.
//!
//! ```text
//!                    next() = Sandbox              next() = Start(c)
//!   Pending ──────────────────────▶ sandbox ready ───────────────────▶ Running
//!      │  sandbox cannot be made        │   ▲                            │
//!      ▼                                │   └── container ended, to be   │
//!   Failed ◀── init container failed ───┘       restarted: Waiting until │
//!      ▲                                        its back-off is over ◀───┤
//!      └──── all containers ended for good, one of them badly ◀──────────┤
//!   Succeeded ◀── all containers ended well, for good ◀──────────────────┘
//! ```
//!
//! A container: Waiting ─▶ Running ─▶ Terminated, or Waiting again if the restart
//! policy says so. `instances > ended` while one is being made or runs.
//!
//! A VM that dies ends all of its containers. With restartPolicy Never the pod
//! has Failed; otherwise it gets another VM, after a back-off of its own, and
//! begins again with its init containers.

use crate::backoff::Backoff;
use crate::manifest::RestartPolicy;
use crate::record::{ContainerState, ContainerStatus, Phase, Pod, PodRecord};
use std::time::Duration;

/// Exit code of a container that could not be started.
pub(crate) const CODE_NOT_STARTED: i32 = 128;

/// Reason of pods and containers whose virtual machine ended by itself.
pub(crate) const VM_DIED: &str = "VmDied";

/// A container of the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) role: Role,
    pub(crate) index: usize,
}

/// What a container is to its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Has to end well before others begin.
    Init,
    /// One that the pod is for.
    Main,
    /// Added to look into the others; the pod's phase does not count it.
    Ephemeral,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Next {
    /// Make a sandbox.
    Sandbox,
    /// Start this container.
    Start(Slot),
    /// Nothing before this time (nanoseconds since the epoch; `None`: not by
    /// itself) or before something happens.
    Wait(Option<i64>),
    /// It is over.
    Finish(Phase),
}

/// How an instance ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) signal: u32,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    pub(crate) finished_at_ns: i64,
}

/// The rules of one pod.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) policy: RestartPolicy,
    pub(crate) backoff: Backoff,
}

impl PodRecord {
    pub(crate) fn status(&self, slot: Slot) -> &ContainerStatus {
        let pod = &self.pod;
        let list = match slot.role {
            Role::Init => &pod.init_containers,
            Role::Main => &pod.containers,
            Role::Ephemeral => &pod.ephemeral_containers,
        };
        &list[slot.index]
    }

    pub(crate) fn status_mut(&mut self, slot: Slot) -> &mut ContainerStatus {
        let pod = &mut self.pod;
        let list = match slot.role {
            Role::Init => &mut pod.init_containers,
            Role::Main => &mut pod.containers,
            Role::Ephemeral => &mut pod.ephemeral_containers,
        };
        &mut list[slot.index]
    }

    /// All containers, the init containers first, the ephemeral ones last.
    pub(crate) fn slots(&self) -> Vec<Slot> {
        let pod = &self.pod;
        let slots = |role, list: &[_]| (0..list.len()).map(move |index| Slot { role, index });
        slots(Role::Init, &pod.init_containers)
            .chain(slots(Role::Main, &pod.containers))
            .chain(slots(Role::Ephemeral, &pod.ephemeral_containers))
            .collect()
    }
}

/// A container that ended with code 0, for good.
fn done_well(status: &ContainerStatus) -> bool {
    status.state == ContainerState::Terminated && status.exit_code == 0
}

/// What is to be done next. `ready`: the sandbox takes containers.
pub(crate) fn next(record: &PodRecord, ready: bool, now_ns: i64) -> Next {
    if let Some(phase) = outcome(record) {
        return Next::Finish(phase);
    }
    if !ready {
        return match record.sandbox_not_before_ns {
            time if time > now_ns => Next::Wait(Some(time)),
            _ => Next::Sandbox,
        };
    }
    let pod = &record.pod;
    let due = |slot: Slot| {
        let status = record.status(slot);
        match status.state {
            ContainerState::Waiting if status.not_before_ns <= now_ns => Some(Next::Start(slot)),
            _ => None,
        }
    };
    let slot_of = |role| move |index| Slot { role, index };
    // Ephemeral containers wait for nothing but their targets.
    let ephemeral = || {
        let all = pod.ephemeral_containers.iter().enumerate();
        all.filter(|(_, status)| pod.target_runs(status))
    };
    let mut slots = ephemeral().map(|(index, _)| slot_of(Role::Ephemeral)(index));
    if let Some(start) = slots.find_map(due) {
        return start;
    }
    let waiting = ephemeral().map(|(_, status)| status);
    // The first init container that is not done holds up everything behind it.
    let inits = &pod.init_containers;
    if let Some(index) = inits.iter().position(|status| !done_well(status)) {
        let waits = Next::Wait(wake_time(waiting.chain([&inits[index]])));
        return due(slot_of(Role::Init)(index)).unwrap_or(waits);
    }
    let mains = &pod.containers;
    (0..mains.len())
        .map(slot_of(Role::Main))
        .find_map(due)
        .unwrap_or_else(|| Next::Wait(wake_time(waiting.chain(mains))))
}

/// When the first of these that wait may be started.
fn wake_time<'a>(statuses: impl IntoIterator<Item = &'a ContainerStatus>) -> Option<i64> {
    statuses
        .into_iter()
        .filter(|status| status.state == ContainerState::Waiting)
        .map(|status| status.not_before_ns)
        .min()
}

/// The final phase, if nothing of the pod will run again.
fn outcome(record: &PodRecord) -> Option<Phase> {
    let pod = &record.pod;
    let failed = |s: &ContainerStatus| s.state == ContainerState::Terminated && s.exit_code != 0;
    // An init container is Terminated with a failure only where it is not to be
    // tried again.
    if pod.init_containers.iter().any(failed) {
        return Some(Phase::Failed);
    }
    if !pod.init_containers.iter().all(done_well) {
        return None;
    }
    let over = |s: &ContainerStatus| s.state == ContainerState::Terminated;
    if !pod.containers.iter().all(over) {
        return None;
    }
    Some(ended_phase(record))
}

/// The phase of a pod whose containers have all ended or never began.
pub(crate) fn ended_phase(record: &PodRecord) -> Phase {
    if record.pod.containers.iter().all(done_well) {
        Phase::Succeeded
    } else {
        Phase::Failed
    }
}

/// The phase of a pod that is not over.
pub(crate) fn phase(record: &PodRecord) -> Phase {
    let pod = &record.pod;
    let begun = |s: &ContainerStatus| s.started_at_ns != 0 || s.ended > 0;
    if pod.init_containers.iter().all(done_well) && pod.containers.iter().all(begun) {
        Phase::Running
    } else {
        Phase::Pending
    }
}

/// An instance is begun: recorded before anything of it is made. One that was
/// begun before and has not ended is gone on with.
pub(crate) fn begin(status: &mut ContainerStatus) {
    if status.instances == status.ended {
        status.instances += 1;
        status.id.clear();
        status.restart_count = status.instances - 1;
    }
    status.state = ContainerState::Waiting;
    status.reason = "ContainerCreating".to_owned();
    status.message.clear();
}

/// An instance runs.
pub(crate) fn started(status: &mut ContainerStatus, started_at_ns: i64) {
    status.state = ContainerState::Running;
    status.reason.clear();
    status.message.clear();
    status.started_at_ns = started_at_ns;
    status.hold_up_ms = 0;
    status.not_before_ns = 0;
}

/// An attempt to begin failed before anything ran; it is tried again.
pub(crate) fn held_up(
    status: &mut ContainerStatus,
    rules: &Rules,
    reason: &str,
    message: &str,
    now_ns: i64,
) {
    status.state = ContainerState::Waiting;
    status.reason = reason.to_owned();
    status.message = message.to_owned();
    status.hold_up_ms = rules.backoff.longer_ms(status.hold_up_ms);
    status.not_before_ns = after(now_ns, status.hold_up_ms);
}

/// An instance has ended.
pub(crate) fn ended(status: &mut ContainerStatus, slot: Slot, rules: &Rules, ended: Ended) {
    let again = match rules.policy {
        RestartPolicy::Never => false,
        RestartPolicy::OnFailure => ended.code != 0,
        // An init container that has done its work is not to be done again.
        RestartPolicy::Always => slot.role == Role::Main || ended.code != 0,
    };
    let again = again && slot.role != Role::Ephemeral;
    status.ended = status.instances;
    status.exit_code = ended.code;
    status.signal = ended.signal;
    status.finished_at_ns = ended.finished_at_ns;
    if !again {
        status.state = ContainerState::Terminated;
        status.reason = ended.reason.to_owned();
        status.message = ended.message;
        return;
    }
    let ran = u64::try_from(ended.finished_at_ns - status.started_at_ns).unwrap_or(0);
    let ran = if status.started_at_ns == 0 { 0 } else { ran };
    let (pause, next) = rules
        .backoff
        .restart_ms(status.backoff_ms, Duration::from_nanos(ran));
    status.backoff_ms = next;
    status.not_before_ns = after(ended.finished_at_ns, pause);
    status.state = ContainerState::Waiting;
    let when = if pause == 0 {
        status.reason = ended.reason.to_owned();
        "at once".to_owned()
    } else {
        status.reason = "CrashLoopBackOff".to_owned();
        format!("after {:?}", Duration::from_millis(pause))
    };
    let mut message = format!(
        "ended with code {} ({}); it is started again {when}",
        ended.code, ended.reason
    );
    if !ended.message.is_empty() {
        message.push_str(": ");
        message.push_str(&ended.message);
    }
    status.message = message;
}

/// The VM died: its containers with it. `ready_at_ns`: when it had become ready.
pub(crate) fn vm_died(record: &mut PodRecord, rules: &Rules, cause: &str, now_ns: i64) {
    let ready_at_ns = record.pod.started_at_ns;
    for slot in record.slots() {
        let status = record.status_mut(slot);
        if status.instances > status.ended {
            let how = Ended {
                code: 137,
                signal: 0,
                reason: VM_DIED,
                message: cause.to_owned(),
                finished_at_ns: now_ns,
            };
            ended(status, slot, rules, how);
        }
        // The pause is the sandbox's.
        if status.state == ContainerState::Waiting {
            status.not_before_ns = 0;
        }
    }
    record.sandbox_id = None;
    if rules.policy == RestartPolicy::Never {
        give_up_waiting(record);
    }
    if outcome(record).is_some() {
        return;
    }
    // A new VM has empty volumes: what the init containers did is gone.
    for status in &mut record.pod.init_containers {
        status.state = ContainerState::Waiting;
        status.reason = "PodInitializing".to_owned();
        status.not_before_ns = 0;
    }
    let ran = u64::try_from(now_ns - ready_at_ns).unwrap_or(0);
    let ran = if ready_at_ns == 0 { 0 } else { ran };
    let (pause, next) = rules
        .backoff
        .restart_ms(record.sandbox_backoff_ms, Duration::from_nanos(ran));
    record.sandbox_backoff_ms = next;
    record.sandbox_not_before_ns = after(now_ns, pause);
    record.pod.reason = VM_DIED.to_owned();
    record.pod.message = cause.to_owned();
}

/// The pod is stopped: whatever waits will not be started any more.
pub(crate) fn give_up_waiting(record: &mut PodRecord) {
    for slot in record.slots() {
        let status = record.status_mut(slot);
        if status.state == ContainerState::Waiting {
            status.state = ContainerState::Terminated;
            if status.ended == 0 {
                status.exit_code = CODE_NOT_STARTED;
                status.reason = "NotStarted".to_owned();
                status.message = "the pod was ended before".to_owned();
            } else {
                status.reason = "Error".to_owned();
            }
        }
    }
}

fn after(now_ns: i64, pause_ms: u64) -> i64 {
    let pause = i64::try_from(pause_ms).unwrap_or(i64::MAX);
    now_ns.saturating_add(pause.saturating_mul(1_000_000))
}

/// Why a pod failed whose containers ended badly: reason and message. A VM's end
/// is one cause, however many containers went with it.
pub(crate) fn failure(pod: &Pod) -> (String, String) {
    let failed = || {
        let counted = pod.init_containers.iter().chain(&pod.containers);
        counted.filter(|c| c.state == ContainerState::Terminated && c.exit_code != 0)
    };
    if let Some(lost) = failed().find(|c| c.reason == VM_DIED) {
        return (VM_DIED.to_owned(), lost.message.clone());
    }
    let said: Vec<String> = failed()
        .map(|c| format!("{} ended with code {} ({})", c.name, c.exit_code, c.reason))
        .collect();
    ("ContainersFailed".to_owned(), said.join(", "))
}

#[cfg(test)]
mod tests;
