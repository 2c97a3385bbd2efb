//! What clients may take, and for how long.

use std::time::Duration;

/// Bounds of a server. What waits in memory for a stream and for a connection is fixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once; more wait to be accepted.
    pub connections: usize,
    /// URLs handed out and not yet used; more are refused.
    pub tokens: usize,
    /// How long a URL is good.
    pub token_life: Duration,
    /// How long a client may take to ask, once it is connected.
    pub request: Duration,
    /// How long a client may take to open the streams that its request needs.
    pub stream_creation: Duration,
    /// How long a command that gets a terminal waits for its client to tell the size:
    /// clients do so at once, but a program may look sooner.
    pub terminal_size: Duration,
    /// How long a connection may say nothing either way.
    pub idle: Duration,
    /// How often a client that cannot be read, as nobody takes what it says, is sent
    /// something that means nothing: one that is not there any more may tell by
    /// nothing else.
    pub nudge: Duration,
    /// Bytes that may wait on the disk as nobody reads them; as many stay free beside
    /// them.
    pub spilled: usize,
    /// Of these, for all connections that a client forwards by one of its own.
    pub spilled_by_forward: usize,
    /// Of these, for a command's input.
    pub spilled_by_command: usize,
    /// How long a command may leave its input unread before this waits on the disk:
    /// kubectl gives a command up that takes nothing for a minute, and Kubernetes'
    /// translator of WebSocket does not see kubectl's end before its input is taken.
    pub unread: Duration,
    /// How long a client is not read where one of its forwarded connections has filled
    /// all of this, and its pod takes nothing; then that connection ends. A client
    /// gives up opening others after half a minute.
    pub stalled: Duration,
    /// How long a client may take to hear the last of it, and a pod to take what was
    /// said before its client broke the connection.
    pub linger: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1000,
            tokens: 1000,
            token_life: Duration::from_secs(60),
            request: Duration::from_secs(10),
            stream_creation: Duration::from_secs(30),
            terminal_size: Duration::from_millis(300),
            idle: Duration::from_secs(4 * 60 * 60),
            nudge: Duration::from_secs(10),
            spilled: 2 << 30,
            spilled_by_forward: 512 << 20,
            spilled_by_command: 64 << 20,
            unread: Duration::from_secs(5),
            stalled: Duration::from_secs(20),
            linger: Duration::from_secs(5),
        }
    }
}
