//! Pod networks with real plugins and real packets, wholly inside network and
//! mount namespaces that each test makes: one that plays the host, one a guest.
//!
//! Needs root, and Debian's containernetworking-plugins, iproute2 and iptables.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod attach;
mod failures;
mod guest;
mod host;
mod killed;
mod spoofing;
