//! The guest's clock.

use crate::node::{Node, PATIENCE};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

#[tokio::test(flavor = "multi_thread")]
async fn clock_that_went_wrong_is_set_right() {
    let Some(node) = Node::new(2).await else {
        return;
    };
    let pod = node.run_sandbox("clock").await;
    let mut spec = node.container("c", "sleep 100000");
    spec.privileged = true;
    let id = node.start(&pod, spec).await;
    for wrong in ["1000000000", "3000000000"] {
        let set = node.sh(&id, &format!("date -s @{wrong}")).await;
        assert_eq!(set.code, 0, "{set:?}");
        let start = Instant::now();
        loop {
            let before = UNIX_EPOCH.elapsed().unwrap().as_secs();
            let told = node.sh(&id, "date +%s").await.stdout;
            let told: u64 = String::from_utf8_lossy(&told).trim().parse().unwrap();
            let after = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .as_secs();
            if (before - 1..=after + 1).contains(&told) {
                break;
            }
            assert!(start.elapsed() < PATIENCE, "still {told}, not {after}");
        }
    }
}
