//! Commands in running containers.

use crate::node::{Node, PATIENCE, input, until};
use sandbox::{ExecExit, ExecInput, ExecOutput, ExecSpec, GuestCode, SandboxError, TerminalSize};
use std::time::Duration;

fn args(args: &[&str]) -> Vec<String> {
    args.iter().map(|&arg| arg.to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_run_to_their_end_or_to_their_limit() {
    let Some(node) = Node::new(2).await else {
        return;
    };
    let pod = node.run_sandbox("exec").await;
    let spec = node.container("c", "cd /tmp; sleep 100000");
    let made = node.sandboxes.create_container(&pod, spec).await.unwrap();
    let early = node
        .sandboxes
        .exec_sync(&made.id, args(&["true"]), None, 10);
    let early = early.await.unwrap_err();
    assert!(matches!(early, SandboxError::WrongState { .. }), "{early}");
    node.sandboxes.start_container(&made.id).await.unwrap();
    let id = &made.id;

    let done = node.sh(id, "echo $GREETING; echo bad >&2; exit 3").await;
    assert_eq!(done.stdout, b"hello\n");
    assert_eq!(done.stderr, b"bad\n");
    assert_eq!((done.code, done.truncated), (3, false));
    assert_eq!(node.sh(id, "kill -9 $$").await.code, 137);

    let much = args(&["seq", "1", "100000"]);
    let cut = node
        .sandboxes
        .exec_sync(id, much, Some(PATIENCE), 1000)
        .await
        .unwrap();
    assert_eq!((cut.stdout.len(), cut.code), (1000, 0));
    assert!(cut.truncated);

    let nothing = node.sandboxes.exec_sync(id, args(&["/no/such"]), None, 10);
    let error = nothing.await.unwrap_err();
    assert!(matches!(error, SandboxError::Guest { .. }), "{error}");
    assert!(error.to_string().contains("/no/such"), "{error}");

    // What a command leaves in the background goes on.
    let left = "sleep 8765 > /dev/null 2>&1 &";
    assert_eq!(node.sh(id, left).await.code, 0);
    assert_eq!(node.sh(id, "ps | grep -q '[8]765'").await.code, 0);

    // Where it is not given the time to end, the whole command goes.
    let long = args(&["sh", "-c", "sleep 4321 & sleep 4321"]);
    let limit = Some(Duration::from_secs(2));
    let late = node.sandboxes.exec_sync(id, long.clone(), limit, 10).await;
    assert!(
        matches!(late, Err(SandboxError::ExecTimeout { .. })),
        "{late:?}"
    );
    assert_gone(&node, id).await;

    // A caller that goes away does the same.
    let given_up = node.sandboxes.exec_sync(id, long, None, 10);
    let given_up = tokio::time::timeout(Duration::from_secs(2), given_up).await;
    assert!(given_up.is_err());
    assert_gone(&node, id).await;
}

/// Waits until no command of the test is left in the container.
async fn assert_gone(node: &Node, id: &str) {
    let gone = async { while node.sh(id, "ps | grep -q '[4]321'").await.code == 0 {} };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn session_has_input_terminal_signals_and_ends_with_its_vm() {
    let Some(node) = Node::new(2).await else {
        return;
    };
    let pod = node.run_sandbox("session").await;
    let id = node.start(&pod, node.container("c", "sleep 100000")).await;

    let cat = ExecSpec {
        args: args(&["sh", "-c", "cat; echo over; exit 4"]),
        stdin: true,
        ..ExecSpec::default()
    };
    let mut session = node.sandboxes.exec(&id, cat).await.unwrap();
    input(&session, "first\n").await;
    until(&mut session, "first\n").await;
    session.input.send(ExecInput::StdinClosed).await.unwrap();
    until(&mut session, "over\n").await;
    let exit = ExecExit { code: 4, signal: 0 };
    assert_eq!(
        session.output.recv().await.unwrap().unwrap(),
        ExecOutput::Exited(exit)
    );
    assert!(session.output.recv().await.is_none());

    let shell = ExecSpec {
        args: args(&["sh"]),
        terminal: true,
        stdin: true,
        size: Some(TerminalSize {
            columns: 91,
            rows: 17,
        }),
        ..ExecSpec::default()
    };
    let mut session = node.sandboxes.exec(&id, shell).await.unwrap();
    input(&session, "stty size\n").await;
    until(&mut session, "17 91").await;
    let wider = TerminalSize {
        columns: 132,
        rows: 43,
    };
    session.input.send(ExecInput::Resize(wider)).await.unwrap();
    input(&session, "stty size\n").await;
    until(&mut session, "43 132").await;
    session.input.send(ExecInput::Signal(9)).await.unwrap();
    loop {
        match session.output.recv().await {
            Some(Ok(ExecOutput::Exited(exit))) => {
                assert_eq!((exit.code, exit.signal), (137, 9));
                break;
            }
            Some(Ok(_)) => {}
            other => panic!("{other:?}"),
        }
    }

    let sleep = ExecSpec {
        args: args(&["sleep", "100000"]),
        ..ExecSpec::default()
    };
    let mut session = node.sandboxes.exec(&id, sleep).await.unwrap();
    let vmm = node.sandboxes.sandbox(&pod).unwrap().vmm_pid().unwrap();
    let vmm = rustix::process::Pid::from_raw(vmm.cast_signed()).unwrap();
    rustix::process::kill_process(vmm, rustix::process::Signal::KILL).unwrap();
    let last = tokio::time::timeout(PATIENCE, session.output.recv())
        .await
        .unwrap();
    assert!(
        matches!(last, Some(Err(SandboxError::VmDied { .. }))),
        "{last:?}"
    );
    node.exited(&id).await;
    let dead = node
        .sandboxes
        .exec_sync(&id, args(&["true"]), None, 10)
        .await;
    assert!(
        matches!(dead, Err(SandboxError::WrongState { .. })),
        "{dead:?}"
    );
    let figures = node.sandboxes.stats(&pod).await;
    assert!(figures.is_err(), "{figures:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn refusal_of_the_guest_says_what_kind_it_is() {
    let Some(node) = Node::new(2).await else {
        return;
    };
    let pod = node.run_sandbox("refusal").await;
    let mut spec = node.container("c", "true");
    spec.process.user = "nobody-of-that-name".to_owned();
    let refused = node.sandboxes.create_container(&pod, spec).await;
    let Err(SandboxError::Guest { code, message, .. }) = refused else {
        panic!("{refused:?}");
    };
    assert!(message.contains("nobody-of-that-name"), "{message}");
    assert_ne!(code, GuestCode::Unavailable, "{message}");
    assert!(node.sandboxes.containers(&pod).is_empty());
}
