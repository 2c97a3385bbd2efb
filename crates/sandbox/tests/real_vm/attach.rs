//! Sessions with a container's own streams.

use crate::node::{Node, PATIENCE, input, until};
use sandbox::{
    AttachSpec, ExecExit, ExecInput, ExecOutput, ExecSession, SandboxError, TerminalSize,
};

const ALL: AttachSpec = AttachSpec {
    stdin: true,
    stdout: true,
    stderr: true,
    terminal: false,
};
const OUTPUT: AttachSpec = AttachSpec {
    stdin: false,
    ..ALL
};
const READER: &str = "while read line; do echo got $line; echo bad $line >&2; done; \
                      echo stdin ended; exit 5";

/// Takes the rest of a session: bytes of output, bytes lost, exit code.
async fn rest(session: &mut ExecSession) -> (usize, u64, i32) {
    let (mut got, mut missing) = (0, 0);
    let ended = async {
        loop {
            match session.output.recv().await {
                Some(Ok(ExecOutput::Stdout(bytes) | ExecOutput::Stderr(bytes))) => {
                    got += bytes.len();
                }
                Some(Ok(ExecOutput::Lost(bytes))) => missing += bytes,
                Some(Ok(ExecOutput::Exited(ExecExit { code, .. }))) => return code,
                other => panic!("{other:?} instead of the end"),
            }
        }
    };
    let code = tokio::time::timeout(PATIENCE, ended).await.unwrap();
    (got, missing, code)
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_come_and_go_and_the_container_stays() {
    let Some(node) = Node::new(2).await else {
        return;
    };
    let pod = node.run_sandbox("attach").await;
    let mut spec = node.container("kept", READER);
    spec.process.stdin = true;
    let made = node.sandboxes.create_container(&pod, spec).await.unwrap();
    let early = node.sandboxes.attach(&made.id, ALL).await.unwrap_err();
    assert!(matches!(early, SandboxError::WrongState { .. }), "{early}");
    node.sandboxes.start_container(&made.id).await.unwrap();
    let id = &made.id;
    let attach = |spec| node.sandboxes.attach(id, spec);

    let mut watcher = attach(OUTPUT).await.unwrap();
    let mut first = attach(ALL).await.unwrap();
    let mut second = attach(ALL).await.unwrap();
    input(&first, "one\n").await;
    for session in [&mut watcher, &mut first, &mut second] {
        if !until(session, "bad one\n").await.contains("got one\n") {
            until(session, "got one\n").await;
        }
    }
    // Neither a detached caller nor one without more input ends it.
    drop(first);
    second.input.send(ExecInput::StdinClosed).await.unwrap();
    let third = attach(ALL).await.unwrap();
    input(&third, "two\n").await;
    // Its standard error comes last.
    until(&mut watcher, "bad two\n").await;
    until(&mut second, "bad two\n").await;
    let only_errors = AttachSpec {
        stderr: true,
        ..AttachSpec::default()
    };
    let mut errors = attach(only_errors).await.unwrap();
    input(&third, "three\n").await;
    assert_eq!(until(&mut errors, "three\n").await, "bad three\n");

    // A signal ends the container, and that ends the sessions.
    third.input.send(ExecInput::Signal(9)).await.unwrap();
    for session in [&mut watcher, &mut second, &mut errors] {
        assert_eq!(rest(session).await.2, 137);
        assert!(session.output.recv().await.is_none());
    }
    let late = attach(OUTPUT).await.unwrap_err();
    assert!(matches!(late, SandboxError::WrongState { .. }), "{late}");
    let lines = Node::lines(&node.log_path("kept"));
    assert_eq!(lines.len(), 6, "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stdin_that_is_there_once_ends_with_its_first_session() {
    let Some(node) = Node::new(2).await else {
        return;
    };
    let pod = node.run_sandbox("once").await;
    for closes in [true, false] {
        let mut spec = node.container(&format!("once-{closes}"), READER);
        spec.process.stdin = true;
        spec.process.stdin_once = true;
        let id = node.start(&pod, spec).await;
        let mut watcher = node.sandboxes.attach(&id, OUTPUT).await.unwrap();
        let session = node.sandboxes.attach(&id, ALL).await.unwrap();
        let bytes = "x".repeat(100_000) + "\n";
        input(&session, &bytes).await;
        if closes {
            session.input.send(ExecInput::StdinClosed).await.unwrap();
        } else {
            // What it sent still arrives.
            until(&mut watcher, "got").await;
            drop(session);
        }
        let (_, lost, code) = rest(&mut watcher).await;
        assert_eq!((lost, code), (0, 5));
        let lines = Node::lines(&node.log_path(&format!("once-{closes}")));
        assert!(lines.iter().any(|line| line == "stdin ended"));
    }
    let id = node
        .start(&pod, node.container("none", "sleep 100000"))
        .await;
    let refused = node.sandboxes.attach(&id, ALL).await.unwrap_err();
    assert!(matches!(refused, SandboxError::Invalid { .. }), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn terminal_is_resized_while_it_prints_and_a_stalled_reader_stalls_nobody() {
    let Some(node) = Node::new(2).await else {
        return;
    };
    let pod = node.run_sandbox("terminal").await;
    let mut spec = node.container("shell", "exec sh");
    spec.process.stdin = true;
    spec.process.terminal = true;
    let id = node.start(&pod, spec).await;
    let terminal = AttachSpec {
        terminal: true,
        ..ALL
    };
    let stalled = node.sandboxes.attach(&id, OUTPUT).await.unwrap();
    let mut shell = node.sandboxes.attach(&id, terminal).await.unwrap();
    let size = |columns, rows| ExecInput::Resize(TerminalSize { columns, rows });
    shell.input.send(size(91, 17)).await.unwrap();
    input(&shell, "trap 'stty size' WINCH; stty size\n").await;
    until(&mut shell, "17 91").await;
    input(&shell, "seq 1 600000; echo all $((1 + 1))\n").await;
    until(&mut shell, "\n1000\r").await;
    shell.input.send(size(132, 43)).await.unwrap();
    until(&mut shell, "all 2").await;
    input(&shell, "stty size\n").await;
    until(&mut shell, "43 132").await;
    input(&shell, "exit 3\n").await;
    let (_, lost, code) = rest(&mut shell).await;
    assert_eq!((lost, code), (0, 3));

    let printed = node.exited(&id).await;
    assert_eq!(printed.exit.unwrap().log_error, None);
    let log = std::fs::metadata(node.log_path("shell")).unwrap().len();
    let (got, lost, code) = rest(&mut { stalled }).await;
    assert!(lost > 0 && code == 3);
    assert!(got as u64 + lost > 4_000_000 && log > 4_000_000);
}
