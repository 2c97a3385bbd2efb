//! What a container's process finds: environment, user, rights, limits.

use crate::{Test, shared};
use anyhow::ensure;
use serde_json::{Value, json};
use spherule_tests::manifest::{one, pod};

pub(crate) const TESTS: &[Test] = &[
    ("env_is_expanded_and_in_order", env),
    (
        "args_replace_the_images_and_command_its_entrypoint",
        command_and_args,
    ),
    ("working_directory_is_made", working_dir),
    ("user_groups_and_supplemental_groups", user),
    ("run_as_non_root_refuses_root", non_root),
    ("capabilities_are_dropped_and_added", capabilities),
    ("read_only_root_is_read_only", read_only_root),
    ("privileged_means_all_rights_in_the_guest", privileged),
    (
        "unprivileged_container_cannot_mount_or_see_devices",
        unprivileged,
    ),
    ("memory_limit_ends_as_oom_killed", oom),
    ("cpu_limit_is_in_the_cgroup", cpu_limit),
    ("missing_command_is_named", missing_command),
    ("clock_counts_no_timer_interrupts", clock),
    ("no_new_privileges_is_set_on_request", no_new_privileges),
];

/// Runs one container; its output without the name in front.
fn output(name: &str, script: &str, extra: Value) -> anyhow::Result<String> {
    let out = shared::daemon()?.run(&one(name, script, extra))?.ok()?;
    Ok(out.replace("[c] ", ""))
}

fn env() -> anyhow::Result<()> {
    let extra = json!({"env": [
        {"name": "A", "value": "one"},
        {"name": "B", "value": "$(A) and $$(A) and $(MISSING)"},
        {"name": "C", "value": "$(B)!"},
    ]});
    let out = output(
        "env",
        "echo \"$B\"; echo \"$C\"; echo $PATH; echo $HOSTNAME",
        extra,
    )?;
    let want = "one and $(A) and $(MISSING)\none and $(A) and $(MISSING)!\n/bin\nenv\n";
    ensure!(out == want, "{out}");
    Ok(())
}

fn command_and_args() -> anyhow::Result<()> {
    let extra = json!({"command": ["echo", "$(X)"], "args": ["a b", "c"],
        "env": [{"name": "X", "value": "expanded"}]});
    let out = output("command-args", "", extra)?;
    ensure!(out == "expanded a b c\n", "{out}");
    Ok(())
}

fn working_dir() -> anyhow::Result<()> {
    let out = output("working-dir", "pwd", json!({"workingDir": "/made/for/it"}))?;
    ensure!(out == "/made/for/it\n", "{out}");
    Ok(())
}

fn user() -> anyhow::Result<()> {
    let extra = json!({"securityContext": {"runAsUser": 1000, "runAsGroup": 1001}});
    let container = spherule_tests::manifest::container("c", "id -u; id -g; id -G", extra);
    let spec = json!({"securityContext": {"supplementalGroups": [3000], "runAsUser": 5}});
    let out = shared::daemon()?
        .run(&pod("user", &[container], spec))?
        .ok()?;
    let lines: Vec<&str> = out.lines().map(|l| l.trim_start_matches("[c] ")).collect();
    ensure!(lines[..2] == ["1000", "1001"], "{out}");
    let groups: Vec<&str> = lines[2].split(' ').collect();
    // 2000 is the image's own: /etc/group puts user 1000 into it.
    ensure!(
        ["1001", "2000", "3000"].iter().all(|g| groups.contains(g)),
        "{out}"
    );
    Ok(())
}

fn non_root() -> anyhow::Result<()> {
    let extra = json!({"securityContext": {"runAsNonRoot": true}});
    let daemon = shared::daemon()?;
    daemon.run_detached(&one("non-root", "echo must not run", extra))?;
    let pod = daemon.wait_for("non-root", "refused", |p| {
        p["containers"][0]["reason"] == "CreateContainerConfigError" || p["phase"] == "PHASE_FAILED"
    })?;
    ensure!(pod.to_string().contains("runAsNonRoot"), "{pod:#}");
    daemon.cli(["rm", "--force", "non-root"])?.ok()?;
    Ok(())
}

fn capabilities() -> anyhow::Result<()> {
    let status = "grep CapEff /proc/self/status";
    let extra =
        json!({"securityContext": {"capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]}}});
    let out = output("capabilities", status, extra)?;
    ensure!(out.trim_end().ends_with("0000000000001000"), "{out}");
    let out = output("capabilities-default", status, json!({}))?;
    ensure!(out.trim_end().ends_with("00000000a80425fb"), "{out}");
    Ok(())
}

fn read_only_root() -> anyhow::Result<()> {
    let extra = json!({"securityContext": {"readOnlyRootFilesystem": true}});
    let out = output(
        "read-only",
        "touch /x 2>&1 || echo refused; touch /dev/shm/x && echo shm",
        extra,
    )?;
    ensure!(
        out.contains("Read-only file system") && out.ends_with("refused\nshm\n"),
        "{out}"
    );
    Ok(())
}

fn privileged() -> anyhow::Result<()> {
    let script = "mkdir /m && mount -t tmpfs t /m && echo mounted; test -b /dev/vda && echo disk; \
        echo 1 > /proc/sys/net/ipv4/ip_forward && echo sysctl; grep CapEff /proc/self/status";
    let out = output(
        "privileged",
        script,
        json!({"securityContext": {"privileged": true}}),
    )?;
    ensure!(out.starts_with("mounted\ndisk\nsysctl\n"), "{out}");
    ensure!(out.trim_end().ends_with("1ffffffffff"), "{out}");
    Ok(())
}

fn unprivileged() -> anyhow::Result<()> {
    let script = "mkdir /m; mount -t tmpfs t /m 2>/dev/null || echo no mount; \
        test -e /dev/vda || echo no disk; echo 1 2>/dev/null > /proc/sys/net/ipv4/ip_forward || echo no sysctl; \
        mknod /tmp/vda b 254 0 && cat /tmp/vda 2>/dev/null || echo no access";
    let out = output("unprivileged", script, json!({}))?;
    ensure!(out == "no mount\nno disk\nno sysctl\nno access\n", "{out}");
    Ok(())
}

fn oom() -> anyhow::Result<()> {
    let extra = json!({"resources": {"limits": {"memory": "32Mi"}}});
    let daemon = shared::daemon()?;
    // tail keeps a line without end in memory.
    let ran = daemon.run(&one("oom", "exec tail /dev/zero", extra))?;
    ran.code(137)?;
    let pod = daemon.inspect("oom")?;
    ensure!(pod["containers"][0]["reason"] == "OOMKilled", "{pod:#}");
    Ok(())
}

fn cpu_limit() -> anyhow::Result<()> {
    let extra = json!({"resources": {"limits": {"cpu": "500m"}, "requests": {"cpu": "250m"}}});
    let out = output("cpu-limit", "cat /sys/fs/cgroup/cpu.max", extra)?;
    ensure!(out == "50000 100000\n", "{out}");
    Ok(())
}

/// A guest that tells the time by its timer loses what a busy host interrupts late.
/// Until it trusts its counter, in its first seconds, it may do so.
fn clock() -> anyhow::Result<()> {
    let script = "cd /sys/devices/system/clocksource/clocksource0
        for n in $(seq 600); do
            grep -qx -e tsc -e kvm-clock current_clocksource && break
            sleep 0.1
        done
        cat current_clocksource";
    let source = output("clock", script, json!({}))?;
    ensure!(
        ["tsc\n", "kvm-clock\n"].contains(&source.as_str()),
        "{source}"
    );
    Ok(())
}

fn missing_command() -> anyhow::Result<()> {
    let extra = json!({"command": ["no-such-program"]});
    let ran = shared::daemon()?.run(&one("missing-command", "", extra))?;
    ran.refused(&["no-such-program", "not found"])
}

fn no_new_privileges() -> anyhow::Result<()> {
    let extra = json!({"securityContext": {"allowPrivilegeEscalation": false}});
    let out = output("no-new-privs", "grep NoNewPrivs /proc/self/status", extra)?;
    ensure!(out.trim_end().ends_with('1'), "{out}");
    Ok(())
}
