//! The wire between the host and spherule-init, PID 1 of a pod's guest: its
//! messages and its vsock ports. The host connects, the guest listens.

/// Messages of `proto/spherule/guest/v1/guest.proto`.
#[expect(missing_docs, reason = "generated; the proto file documents them")]
#[allow(clippy::doc_markdown, clippy::large_enum_variant)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/spherule.guest.v1.rs"));
}

/// The vsock port of the control connections.
pub const CONTROL_PORT: u32 = 1024;
/// The vsock port of the stream connections (a container's stdin, stdout, stderr).
pub const STREAM_PORT: u32 = 1025;
/// The vsock port of exec sessions (a process in a running container each).
pub const EXEC_PORT: u32 = 1026;
/// The vsock port of connections to ports of the pod.
pub const FORWARD_PORT: u32 = 1027;
/// The guest's vsock address. Each VM has its own vsock, so all have this one.
pub const GUEST_CID: u32 = 3;

/// What the agent's lines in the kernel's log begin with.
pub const LOG_PREFIX: &str = "spherule-init: ";

/// The line by which the kernel's log keeps a container's end, so that it is known
/// where the VM ends before the agent could tell it.
pub fn exit_line(container_id: &str, exit: &proto::ExitStatus) -> String {
    let proto::ExitStatus {
        code,
        signal,
        oom_killed,
        ..
    } = exit;
    format!("container {container_id} ended: code {code} signal {signal} oom {oom_killed}")
}

/// The container and its end that a line of the kernel's log tells, if it is such a
/// line. The time is not told.
pub fn parse_exit_line(line: &str) -> Option<(String, proto::ExitStatus)> {
    let (_, said) = line.split_once(LOG_PREFIX)?;
    let words: Vec<&str> = said.trim_end().split(' ').collect();
    let [
        "container",
        id,
        "ended:",
        "code",
        code,
        "signal",
        signal,
        "oom",
        oom,
    ] = words[..]
    else {
        return None;
    };
    let exit = proto::ExitStatus {
        code: code.parse().ok()?,
        signal: signal.parse().ok()?,
        oom_killed: oom.parse().ok()?,
        finished_at_ns: 0,
    };
    Some((id.to_owned(), exit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn end_of_a_container_is_read_back_from_the_log() {
        let exit = proto::ExitStatus {
            code: 137,
            signal: 9,
            oom_killed: true,
            finished_at_ns: 0,
        };
        let line = format!("[   12.3] {LOG_PREFIX}{}", exit_line("abc", &exit));
        assert_eq!(parse_exit_line(&line), Some(("abc".to_owned(), exit)));
        assert_eq!(parse_exit_line(&format!("{line}\r\n")).unwrap().1, exit);
        for other in [
            "",
            "spherule-init: container abc: it is odd",
            "container abc ended: code 1 signal 0 oom false",
            "spherule-init: container abc ended: code 1 signal 0 oom",
            "spherule-init: container abc ended: code x signal 0 oom false",
            "spherule-init: container abc ended: code 1 signal 0 oom false and more",
        ] {
            assert_eq!(parse_exit_line(other), None, "{other}");
        }
    }
}
