use super::*;
use crate::record::{Pod, Wanted};
use proptest::prelude::*;

const SECOND: i64 = 1_000_000_000;
const CONTAINER: Slot = Slot {
    role: Role::Main,
    index: 0,
};

fn record(inits: usize, mains: usize) -> PodRecord {
    let statuses = |count, kind: &str| {
        (0..count)
            .map(|i| ContainerStatus::new(&format!("{kind}{i}"), "image"))
            .collect()
    };
    PodRecord {
        pod: Pod {
            id: "id".into(),
            namespace: "default".into(),
            name: "p".into(),
            uid: "u".into(),
            labels: Default::default(),
            annotations: Default::default(),
            phase: Phase::Pending,
            reason: String::new(),
            message: String::new(),
            created_at_ns: 0,
            started_at_ns: 0,
            finished_at_ns: 0,
            engine: None,
            init_containers: statuses(inits, "i"),
            containers: statuses(mains, "c"),
            ephemeral_containers: Vec::new(),
            vm: None,
            pod_ips: Vec::new(),
            stages: Vec::new(),
            manifest: String::new(),
        },
        wanted: Wanted::Run,
        sandbox_id: None,
        attempts: 0,
        sandbox_backoff_ms: 0,
        sandbox_not_before_ns: 0,
    }
}

fn rules(policy: RestartPolicy) -> Rules {
    Rules {
        policy,
        backoff: Backoff::default(),
    }
}

/// Begins and starts a container.
fn run(record: &mut PodRecord, slot: Slot, now: i64) {
    begin(record.status_mut(slot));
    started(record.status_mut(slot), now);
}

fn end(record: &mut PodRecord, slot: Slot, policy: RestartPolicy, code: i32, now: i64) {
    let how = Ended {
        code,
        reason: if code == 0 { "Completed" } else { "Error" },
        finished_at_ns: now,
        ..Ended::default()
    };
    ended(record.status_mut(slot), slot, &rules(policy), how);
}

#[test]
fn sandbox_then_init_containers_in_order_then_all_containers() {
    let mut pod = record(2, 2);
    let init = |index| Slot {
        role: Role::Init,
        index,
    };
    assert_eq!(next(&pod, false, 0), Next::Sandbox);
    for index in 0..2 {
        assert_eq!(next(&pod, true, 0), Next::Start(init(index)));
        run(&mut pod, init(index), 1);
        assert_eq!(next(&pod, true, 0), Next::Wait(None));
        assert_eq!(phase(&pod), Phase::Pending);
        end(&mut pod, init(index), RestartPolicy::Always, 0, 2);
    }
    for index in 0..2 {
        let slot = Slot {
            role: Role::Main,
            index,
        };
        assert_eq!(next(&pod, true, 0), Next::Start(slot));
        run(&mut pod, slot, 3);
    }
    assert_eq!(next(&pod, true, 0), Next::Wait(None));
    assert_eq!(phase(&pod), Phase::Running);
}

#[test]
fn never_ends_the_pod_by_its_codes() {
    for (codes, phase) in [([0, 0], Phase::Succeeded), ([0, 3], Phase::Failed)] {
        let mut pod = record(0, 2);
        for (index, code) in codes.into_iter().enumerate() {
            let slot = Slot {
                role: Role::Main,
                index,
            };
            run(&mut pod, slot, 1);
            end(&mut pod, slot, RestartPolicy::Never, code, 2);
        }
        assert_eq!(next(&pod, true, 3), Next::Finish(phase));
    }
}

#[test]
fn failed_init_container_ends_a_pod_that_never_restarts() {
    let slot = Slot {
        role: Role::Init,
        index: 0,
    };
    let mut pod = record(1, 1);
    run(&mut pod, slot, 1);
    end(&mut pod, slot, RestartPolicy::Never, 1, 2);
    assert_eq!(next(&pod, true, 3), Next::Finish(Phase::Failed));
    let mut pod = record(1, 1);
    run(&mut pod, slot, 1);
    end(&mut pod, slot, RestartPolicy::Always, 1, 2);
    assert_eq!(next(&pod, true, 2), Next::Start(slot));
    run(&mut pod, slot, 3);
    end(&mut pod, slot, RestartPolicy::Always, 1, 4);
    assert_eq!(next(&pod, true, 5), Next::Wait(Some(4 + 10 * SECOND)));
    assert_eq!(next(&pod, true, 11 * SECOND), Next::Start(slot));
}

#[test]
fn on_failure_restarts_failures_only() {
    let mut pod = record(0, 1);
    run(&mut pod, CONTAINER, 1);
    end(&mut pod, CONTAINER, RestartPolicy::OnFailure, 1, 2);
    assert_eq!(pod.status(CONTAINER).reason, "Error");
    run(&mut pod, CONTAINER, SECOND);
    end(&mut pod, CONTAINER, RestartPolicy::OnFailure, 1, 2 * SECOND);
    assert_eq!(pod.status(CONTAINER).reason, "CrashLoopBackOff");
    run(&mut pod, CONTAINER, 12 * SECOND);
    assert_eq!(pod.status(CONTAINER).restart_count, 2);
    end(
        &mut pod,
        CONTAINER,
        RestartPolicy::OnFailure,
        0,
        13 * SECOND,
    );
    assert_eq!(next(&pod, true, 0), Next::Finish(Phase::Succeeded));
}

#[test]
fn always_restarts_at_once_then_with_growing_pauses() {
    let mut pod = record(0, 1);
    let mut now = 0;
    for pause in [0, 10, 20, 40] {
        run(&mut pod, CONTAINER, now);
        now += SECOND;
        end(&mut pod, CONTAINER, RestartPolicy::Always, 0, now);
        let until = now + pause * SECOND;
        if pause > 0 {
            assert_eq!(next(&pod, true, now), Next::Wait(Some(until)));
        }
        now = until;
        assert_eq!(next(&pod, true, now), Next::Start(CONTAINER));
    }
    assert_eq!(phase(&pod), Phase::Running);
}

#[test]
fn begun_instance_is_gone_on_with_not_counted_twice() {
    let mut pod = record(0, 1);
    begin(pod.status_mut(CONTAINER));
    let status = pod.status_mut(CONTAINER);
    held_up(
        status,
        &rules(RestartPolicy::Always),
        "ErrImagePull",
        "no such image",
        0,
    );
    assert_eq!(next(&pod, true, 0), Next::Wait(Some(10 * SECOND)));
    begin(pod.status_mut(CONTAINER));
    assert_eq!(pod.status(CONTAINER).instances, 1);
    assert_eq!(pod.status(CONTAINER).restart_count, 0);
}

#[test]
fn dead_vm_fails_a_pod_that_never_restarts_and_gives_others_a_new_one() {
    let mut pod = record(0, 1);
    run(&mut pod, CONTAINER, 1);
    vm_died(&mut pod, &rules(RestartPolicy::Never), "panic", 5);
    assert_eq!(next(&pod, false, 6), Next::Finish(Phase::Failed));
    assert_eq!(pod.status(CONTAINER).reason, VM_DIED);
    let (reason, message) = failure(&pod.pod);
    assert_eq!(reason, VM_DIED);
    assert!(message.contains("panic"), "{message}");

    let mut pod = record(1, 1);
    let init = Slot {
        role: Role::Init,
        index: 0,
    };
    run(&mut pod, init, 1);
    end(&mut pod, init, RestartPolicy::Always, 0, 2);
    run(&mut pod, CONTAINER, 3);
    vm_died(&mut pod, &rules(RestartPolicy::Always), "panic", 5);
    assert_eq!(next(&pod, false, 5), Next::Sandbox);
    vm_died(&mut pod, &rules(RestartPolicy::Always), "panic", 6);
    assert_eq!(next(&pod, false, 7), Next::Wait(Some(6 + 10 * SECOND)));
    assert_eq!(next(&pod, false, 11 * SECOND), Next::Sandbox);
    assert_eq!(next(&pod, true, 11 * SECOND), Next::Start(init));
}

#[test]
fn containers_that_ended_well_stay_so_when_the_vm_dies() {
    let mut pod = record(0, 1);
    run(&mut pod, CONTAINER, 1);
    end(&mut pod, CONTAINER, RestartPolicy::OnFailure, 0, 2);
    vm_died(&mut pod, &rules(RestartPolicy::OnFailure), "panic", 5);
    assert_eq!(next(&pod, false, 6), Next::Finish(Phase::Succeeded));
}

proptest! {
    /// Whatever happens in whatever order: counts stay in line, a final outcome
    /// stays, and a pod never both waits for nothing and has nothing running.
    #[test]
    fn no_history_gets_stuck(
        policy in prop_oneof![
            Just(RestartPolicy::Always),
            Just(RestartPolicy::OnFailure),
            Just(RestartPolicy::Never)
        ],
        codes in prop::collection::vec((0i32..2, 0u8..12), 1..60),
    ) {
        let mut pod = record(2, 2);
        let mut now = 0i64;
        let mut ready = false;
        for (code, event) in codes {
            now += SECOND;
            if event == 0 && ready {
                vm_died(&mut pod, &rules(policy), "panic", now);
                ready = false;
            }
            match next(&pod, ready, now) {
                Next::Sandbox => ready = true,
                Next::Start(slot) => run(&mut pod, slot, now),
                Next::Wait(Some(until)) => now = now.max(until),
                Next::Wait(None) => {
                    let running = pod.slots().into_iter().find(|slot| {
                        pod.status(*slot).state == ContainerState::Running
                    });
                    prop_assert!(running.is_some(), "nothing runs: {:?}", pod);
                    end(&mut pod, running.unwrap(), policy, code, now);
                }
                Next::Finish(phase) => {
                    prop_assert!(phase.is_final());
                    prop_assert_eq!(next(&pod, ready, now + SECOND), Next::Finish(phase));
                    prop_assert!(policy != RestartPolicy::Always || phase == Phase::Failed);
                }
            }
            for slot in pod.slots() {
                let status = pod.status(slot);
                prop_assert!(status.ended <= status.instances);
                prop_assert!(status.instances <= status.ended + 1);
            }
        }
    }
}

#[test]
fn ephemeral_containers_start_with_their_target_once_and_count_for_nothing() {
    let looks = |index| Slot {
        role: Role::Ephemeral,
        index,
    };
    let init = Slot {
        role: Role::Init,
        index: 0,
    };
    let added = |target: &str| ContainerStatus {
        target: target.to_owned(),
        ..ContainerStatus::new(&format!("e-{target}"), "image")
    };
    let mut pod = record(1, 1);
    pod.pod.ephemeral_containers = vec![added(""), added("i0"), added("c0")];
    // Also while init containers are not done.
    assert_eq!(next(&pod, true, 0), Next::Start(looks(0)));
    run(&mut pod, looks(0), 1);
    assert_eq!(next(&pod, true, 1), Next::Start(init));
    run(&mut pod, init, 1);
    assert_eq!(next(&pod, true, 1), Next::Start(looks(1)));
    run(&mut pod, looks(1), 2);
    end(&mut pod, looks(1), RestartPolicy::Always, 1, 3);
    assert_eq!(
        pod.status(looks(1)).state,
        ContainerState::Terminated,
        "never again"
    );
    end(&mut pod, init, RestartPolicy::Always, 0, 3);
    run(&mut pod, CONTAINER, 4);
    assert_eq!(phase(&pod), Phase::Running);
    // One that has to wait is waited for, and holds up nobody.
    let held = rules(RestartPolicy::Always);
    held_up(pod.status_mut(looks(2)), &held, "reason", "message", 5);
    assert_eq!(next(&pod, true, 5), Next::Wait(Some(5 + 10 * SECOND)));
    end(&mut pod, CONTAINER, RestartPolicy::Never, 0, 6);
    assert_eq!(next(&pod, true, 6), Next::Finish(Phase::Succeeded));
    assert_eq!(failure(&pod.pod).1, "");
    // A VM's end is theirs.
    vm_died(&mut pod, &held, "gone", 7);
    assert_eq!(pod.status(looks(0)).state, ContainerState::Terminated);
}
