//! What runs in a sandbox, in real VMs under the qemu engine: what `cargo xtask
//! setup` builds must be there, otherwise the tests say so and pass.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod attach;
mod block_volumes;
mod clock;
mod commands;
mod figures;
mod logs;
mod many;
mod node;
mod ports;
mod shares;
mod users;
mod volume_io;
