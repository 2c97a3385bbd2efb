//! The agent's own log: lines into the kernel's log (/dev/kmsg), which the host
//! keeps. Bounded, so no caller can flood it through the agent.

use guest_api::LOG_PREFIX;
use std::fs::File;
use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

static KMSG: OnceLock<File> = OnceLock::new();
/// Lines written in the life of this guest.
static LINES: AtomicU32 = AtomicU32::new(0);
/// Most lines in the life of a guest. A healthy pod needs a dozen.
const MAX_LINES: u32 = 2000;
/// Longest line in bytes; the kernel takes just under 1 KiB.
const MAX_LINE: usize = 900;

/// Opens /dev/kmsg; before this and where it fails, all but fatal lines are
/// dropped.
pub(crate) fn open() {
    if let Ok(file) = File::options().write(true).open("/dev/kmsg") {
        let _ = KMSG.set(file);
    }
}

/// Something an operator may want to know.
pub(crate) fn info(text: &str) {
    line(6, text);
}

/// Something that went wrong and was survived.
pub(crate) fn warn(text: &str) {
    line(4, text);
}

/// Why the guest cannot go on.
pub(crate) fn fatal(text: &str) {
    line(0, text);
}

fn line(level: u8, text: &str) {
    let written = LINES.fetch_add(1, Ordering::Relaxed);
    if written > MAX_LINES && level > 0 {
        return;
    }
    let text = if written == MAX_LINES {
        "too many messages, keeping silent from now on"
    } else {
        text
    };
    let mut line = format!("<{level}>{LOG_PREFIX}{text}").into_bytes();
    line.truncate(MAX_LINE);
    for byte in &mut line {
        // One record a line, whatever a request's text contains.
        if *byte < b' ' {
            *byte = b' ';
        }
    }
    line.push(b'\n');
    match KMSG.get() {
        Some(mut kmsg) => {
            let _ = kmsg.write_all(&line);
        }
        // Before /dev is there: the console, which ends in the same log.
        None if level == 0 => {
            let _ = std::io::stderr().write_all(&line);
        }
        None => {}
    }
}
