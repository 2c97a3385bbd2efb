//! Figures, limits, exits and mounted images.

use crate::node::{Node, PAGES};
use sandbox::{MountSource, MountSpec, ResourceSpec, SandboxError};

#[tokio::test(flavor = "multi_thread")]
async fn figures_are_the_guests_and_the_vms_and_limits_change_live() {
    let Some(node) = Node::new(2).await else {
        return;
    };
    let pod = node.run_sandbox("figures").await;
    let script = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done; echo > /tmp/file; sleep 100000";
    let mut spec = node.container("c", script);
    spec.resources.memory_max = 64 << 20;
    let id = node.start(&pod, spec).await;
    node.sh(&id, "until [ -e /tmp/file ]; do sleep 0.1; done")
        .await;

    let stats = node.sandboxes.stats(&pod).await.unwrap();
    assert!(stats.usage.cpu.total_ns > 0, "{stats:#?}");
    assert!(stats.guest.memory_total > 64 << 20, "{stats:#?}");
    assert!(
        stats.guest.memory_used > 0 && stats.guest.cpu_ns > 0,
        "{stats:#?}"
    );
    assert!(
        stats.host.cpu_ns > 0 && stats.host.rss_bytes > 0,
        "{stats:#?}"
    );
    assert_eq!(stats.host.processes, 2, "spherule-vmm and QEMU");
    assert!(stats.scratch_bytes > 0, "{stats:#?}");
    assert_eq!(stats.containers.len(), 1);
    assert!(
        stats.interfaces.iter().any(|i| i.name == "lo"),
        "{stats:#?}"
    );
    let disk = stats.usage.file_system;
    assert!(disk.capacity_bytes > 32 << 20, "{disk:?}");
    assert!(
        disk.used_bytes > 0 && disk.used_bytes < disk.capacity_bytes,
        "{disk:?}"
    );
    let usage = &stats.containers[0].usage;
    assert!(
        usage.cpu.total_ns > 0 && usage.memory.current > 0,
        "{usage:#?}"
    );
    assert_eq!(usage.memory.limit, 64 << 20);
    assert!(usage.processes >= 1 && usage.threads >= 1, "{usage:#?}");

    let limits = ResourceSpec {
        memory_max: 32 << 20,
        pids_max: 50,
        cpu_quota_us: 50_000,
        cpu_period_us: 100_000,
        ..ResourceSpec::default()
    };
    node.sandboxes
        .update_container(&id, limits.clone())
        .await
        .unwrap();
    assert_eq!(
        node.sandboxes.container(&id).unwrap().spec.resources,
        limits
    );
    let usage = node.sandboxes.container_stats(&id).await.unwrap().usage;
    assert_eq!((usage.memory.limit, usage.threads_max), (32 << 20, 50));

    let all = ResourceSpec {
        memory_max: 80 << 20,
        ..ResourceSpec::default()
    };
    node.sandboxes
        .update_sandbox(&pod, all.clone())
        .await
        .unwrap();
    assert_eq!(node.sandboxes.sandbox(&pod).unwrap().spec.resources, all);
    let usage = node.sandboxes.stats(&pod).await.unwrap().usage;
    assert_eq!(usage.memory.limit, 80 << 20);

    let weight = ResourceSpec {
        cpu_weight: 10_001,
        ..ResourceSpec::default()
    };
    let refused = node.sandboxes.update_container(&id, weight).await;
    assert!(
        matches!(refused, Err(SandboxError::Invalid { .. })),
        "{refused:?}"
    );
    node.sandboxes
        .stop_container(&id, Default::default(), None)
        .await
        .unwrap();
    let late = node.sandboxes.update_container(&id, limits).await;
    assert!(
        matches!(late, Err(SandboxError::WrongState { .. })),
        "{late:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn container_out_of_memory_says_so_and_images_can_be_mounted() {
    let Some(node) = Node::new(2).await else {
        return;
    };
    let pod = node.run_sandbox("exits").await;
    let mut greedy = node.container("greedy", "exec tail /dev/zero");
    greedy.resources.memory_max = 16 << 20;
    let id = node.start(&pod, greedy).await;
    let exit = node.exited(&id).await.exit.unwrap();
    assert!(exit.oom_killed, "{exit:?}");
    assert_eq!(exit.code, 137);

    let mut reader = node.container("reader", "cat /all/page/index.html /one; echo x > /all/y");
    reader.mounts = [("/all", ""), ("/one", "page/index.html")]
        .map(|(destination, sub_path)| MountSpec {
            source: MountSource::Image(PAGES.to_owned()),
            sub_path: sub_path.to_owned(),
            destination: destination.to_owned(),
            read_only: true,
        })
        .to_vec();
    let id = node.start(&pod, reader).await;
    let exit = node.exited(&id).await.exit.unwrap();
    let lines = Node::lines(&node.log_path("reader"));
    assert_eq!(lines[..2], ["hello", "hello"], "{lines:?}");
    assert!(lines[2].contains("Read-only"), "{lines:?}");
    assert_eq!(exit.code, 1);
    node.sandboxes.remove_container(&id).await.unwrap();

    let mut missing = node.container("missing", "true");
    missing.mounts = vec![MountSpec {
        source: MountSource::Image("localhost/nothing:1".to_owned()),
        sub_path: String::new(),
        destination: "/d".to_owned(),
        read_only: true,
    }];
    let refused = node.sandboxes.create_container(&pod, missing).await;
    assert!(
        matches!(refused, Err(SandboxError::Image { .. })),
        "{refused:?}"
    );
    assert_eq!(node.sandboxes.all_containers().len(), 1);
    node.sandboxes.remove_sandbox(&pod).await.unwrap();
    assert!(node.sandboxes.all_containers().is_empty());
}
