//! Log rotation while a container prints.

use crate::node::Node;
use sandbox::SandboxError;

#[tokio::test(flavor = "multi_thread")]
async fn rotation_loses_and_doubles_nothing() {
    const LINES: usize = 60_000;
    let Some(node) = Node::new(2).await else {
        return;
    };
    let pod = node.run_sandbox("logs").await;
    let id = node
        .start(&pod, node.container("c", &format!("seq 1 {LINES}")))
        .await;
    let path = node.log_path("c");
    let mut rotated = Vec::new();
    while node.sandboxes.container(&id).unwrap().exit.is_none() && rotated.len() < 50 {
        let old = path.with_extension(rotated.len().to_string());
        std::fs::rename(&path, &old).unwrap();
        match node.sandboxes.reopen_log(&id).await {
            Ok(()) => rotated.push(old),
            Err(SandboxError::WrongState { .. }) => {
                rotated.push(old);
                break;
            }
            Err(error) => panic!("{error}"),
        }
    }
    let exit = node.exited(&id).await.exit.unwrap();
    assert_eq!((exit.code, exit.log_error), (0, None));
    assert!(!rotated.is_empty());
    if path.exists() {
        rotated.push(path.clone());
    }
    let lines: Vec<String> = rotated.iter().flat_map(|path| Node::lines(path)).collect();
    assert!(lines.into_iter().eq((1..=LINES).map(|n| n.to_string())));
    let late = node.sandboxes.reopen_log(&id).await;
    assert!(
        matches!(late, Err(SandboxError::WrongState { .. })),
        "{late:?}"
    );
}
