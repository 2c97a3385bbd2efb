//! Many sandboxes, and many commands, at once.

use crate::node::{Node, PATIENCE};
use sandbox::{SandboxError, SandboxState};
use tokio::task::JoinSet;

#[tokio::test(flavor = "multi_thread")]
async fn sandboxes_asked_for_at_once_come_up_in_turn() {
    const MANY: usize = 5;
    let Some(node) = Node::new(1).await else {
        return;
    };
    let specs: Vec<_> = (0..MANY).map(|n| Node::spec(&format!("p{n}"))).collect();
    let mut calls = JoinSet::new();
    for spec in &specs {
        let (sandboxes, spec) = (node.sandboxes.clone(), spec.clone());
        calls.spawn(async move { sandboxes.run_sandbox(spec).await });
    }
    while node.sandboxes.sandboxes().len() < MANY {
        tokio::task::yield_now().await;
    }
    // All are known, and the same again is refused.
    assert_eq!(node.sandboxes.sandboxes().len(), MANY);
    let again = node.sandboxes.run_sandbox(specs[3].clone()).await;
    assert!(
        matches!(again, Err(SandboxError::Exists { .. })),
        "{again:?}"
    );
    // One that waits for its turn, or has it, is given up at once.
    node.sandboxes.stop_sandbox(&specs[4].id).await.unwrap();
    let mut turns = Vec::new();
    while let Some(call) = calls.join_next().await {
        match call.unwrap() {
            Ok(made) => {
                assert_eq!(made.state, SandboxState::Ready);
                turns.push((made.stages[0].started_at_ns, made.ready_at_ns));
            }
            Err(SandboxError::Cancelled(id)) => assert_eq!(id, specs[4].id),
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(turns.len(), MANY - 1);
    turns.sort_unstable();
    for pair in turns.windows(2) {
        assert!(pair[0].1 <= pair[1].0, "two were made at once: {turns:?}");
    }
    assert!(node.sandboxes.sandbox(&specs[4].id).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_at_once_all_run() {
    // More than the guest's queue of new connections takes.
    const MANY: usize = 200;
    let Some(node) = Node::new(2).await else {
        return;
    };
    let pod = node.run_sandbox("commands").await;
    let id = node.start(&pod, node.container("c", "sleep 100000")).await;
    let mut calls = JoinSet::new();
    for n in 0..MANY {
        let (sandboxes, id) = (node.sandboxes.clone(), id.clone());
        calls.spawn(async move {
            let args = vec!["echo".to_owned(), n.to_string()];
            let result = sandboxes.exec_sync(&id, args, Some(PATIENCE), 100).await;
            (n, result)
        });
    }
    while let Some(call) = calls.join_next().await {
        let (n, result) = call.unwrap();
        let result = result.unwrap();
        assert_eq!(result.stdout, format!("{n}\n").as_bytes());
        assert_eq!(result.code, 0);
    }
}
