//! Connections to ports of a pod.

use crate::node::{Node, PATIENCE};
use sandbox::SandboxError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinSet;

/// Connects once somebody listens: the pod's programs take their time to start.
async fn connect(node: &Node, pod: &str, port: u16) -> UnixStream {
    let connected = async {
        loop {
            match node.sandboxes.port_forward(pod, port).await {
                Ok(stream) => return stream,
                Err(error) => {
                    assert!(error.to_string().contains("refused"), "{error}");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    };
    tokio::time::timeout(PATIENCE, connected).await.unwrap()
}

/// `size` bytes that no two pieces of have in common, sent; what comes back is
/// compared.
async fn echo(stream: UnixStream, seed: usize, size: usize) {
    let byte = move |n: usize| u8::try_from(((n + seed) / 251 + n) % 256).unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let sender = tokio::spawn(async move {
        let mut sent = 0;
        while sent < size {
            let end = size.min(sent + 60_000);
            let piece: Vec<u8> = (sent..end).map(byte).collect();
            writer.write_all(&piece).await.unwrap();
            sent = end;
        }
        writer.shutdown().await.unwrap();
    });
    let (mut got, mut piece) = (0, vec![0; 60_000]);
    loop {
        let read = reader.read(&mut piece).await.unwrap();
        if read == 0 {
            break;
        }
        for (n, &b) in piece[..read].iter().enumerate() {
            assert_eq!(b, byte(got + n), "byte {} of connection {seed}", got + n);
        }
        got += read;
    }
    assert_eq!(got, size, "connection {seed}");
    sender.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_of_a_pod_are_reached_by_many_connections_at_once() {
    const MANY: usize = 100;
    let Some(node) = Node::new(2).await else {
        return;
    };
    let pod = node.run_sandbox("ports").await;
    let script = "
        ip addr add 10.9.8.7/32 dev lo
        echo page > /tmp/index.html
        nc -ll -p 7 -e cat &
        httpd -p [::1]:8 -h /tmp
        httpd -p 10.9.8.7:9 -h /tmp
        sleep 100000";
    let mut spec = node.container("c", script);
    spec.privileged = true;
    let id = node.start(&pod, spec).await;

    let nobody = node.sandboxes.port_forward(&pod, 999).await.unwrap_err();
    assert!(matches!(nobody, SandboxError::Guest { .. }), "{nobody}");
    let told = nobody.to_string();
    assert!(told.contains("999") && told.contains("refused"), "{told}");
    let none = node.sandboxes.port_forward(&pod, 0).await.unwrap_err();
    assert!(matches!(none, SandboxError::Invalid { .. }), "{none}");

    drop(connect(&node, &pod, 7).await);
    let before = descriptors(&node, &id).await;
    let mut all = JoinSet::new();
    let mut open = Vec::new();
    for _ in 0..MANY {
        open.push(connect(&node, &pod, 7).await);
    }
    for (n, stream) in open.into_iter().enumerate() {
        all.spawn(echo(stream, n, 20_000 + n * 999));
    }
    while let Some(done) = all.join_next().await {
        done.unwrap();
    }
    echo(connect(&node, &pod, 7).await, 7, 64 << 20).await;

    // Listeners of IPv6 and of another address only.
    for port in [8, 9] {
        let mut web = connect(&node, &pod, port).await;
        let request = b"GET /index.html HTTP/1.0\r\n\r\n";
        web.write_all(request).await.unwrap();
        let mut text = String::new();
        web.read_to_string(&mut text).await.unwrap();
        assert!(text.ends_with("\r\n\r\npage\n"), "{text}");
    }

    // Callers that go away while nothing, or more than they take, comes.
    for _ in 0..20 {
        let mut idle = connect(&node, &pod, 7).await;
        idle.write_all(&[7; 100_000]).await.unwrap();
        drop(idle);
        drop(connect(&node, &pod, 7).await);
    }
    let gone = async { while descriptors(&node, &id).await > before {} };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();

    node.sandboxes.stop_sandbox(&pod).await.unwrap();
    let late = node.sandboxes.port_forward(&pod, 7).await.unwrap_err();
    assert!(matches!(late, SandboxError::WrongState { .. }), "{late}");
}

/// TCP connections of the pod that are not over.
async fn descriptors(node: &Node, id: &str) -> usize {
    let list = "cat /proc/net/tcp /proc/net/tcp6 | awk '$4 == \"01\" || $4 == \"08\"' | wc -l";
    let got = node.sh(id, list).await;
    let text = String::from_utf8(got.stdout).unwrap();
    text.trim().parse().unwrap()
}
