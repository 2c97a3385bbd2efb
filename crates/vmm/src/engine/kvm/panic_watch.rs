//! The kernel log on its way to the file, watched for the kernel's last words.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

const PANIC: &str = "Kernel panic";
/// Of a line, so much is looked at.
const LINE_MAX: usize = 512;

/// Where the panic line lies once it was seen.
pub(super) type LastWords = Arc<Mutex<Option<String>>>;

/// Passes everything on to the log and notes the last panic line.
pub(super) struct PanicWatch {
    log: Arc<Mutex<dyn Write + Send>>,
    line: Vec<u8>,
    found: LastWords,
}

impl PanicWatch {
    /// A watch in front of `log`, and where it notes what it found.
    pub(super) fn new(log: Arc<Mutex<dyn Write + Send>>) -> (Self, LastWords) {
        let found = LastWords::default();
        let watch = Self {
            log,
            line: Vec::new(),
            found: found.clone(),
        };
        (watch, found)
    }

    fn look(&mut self) {
        let line = String::from_utf8_lossy(&self.line);
        if let Some(at) = line.find(PANIC) {
            let words = line[at..].trim_end().to_string();
            // Only a whole String is ever stored.
            *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(words);
        }
        self.line.clear();
    }
}

impl Write for PanicWatch {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        for &byte in data {
            if byte == b'\n' {
                self.look();
            } else if self.line.len() < LINE_MAX {
                self.line.push(byte);
            }
        }
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.write_all(data)?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(pieces: &[&[u8]]) -> (Option<String>, Vec<u8>) {
        let log = Arc::new(Mutex::new(Vec::new()));
        let (mut watch, found) = PanicWatch::new(log.clone());
        for piece in pieces {
            watch.write_all(piece).unwrap();
        }
        let words = found.lock().unwrap().clone();
        let text = log.lock().unwrap().clone();
        (words, text)
    }

    #[test]
    fn panic_line_is_found_across_writes_and_without_its_time() {
        let (words, text) = watch(&[
            b"[    1.0] Kernel pa",
            b"nic - not syncing: Attempted to kill init!\r\n[ 1.1] more\n",
        ]);
        assert_eq!(
            words.as_deref(),
            Some("Kernel panic - not syncing: Attempted to kill init!")
        );
        assert!(text.ends_with(b"more\n"));
    }

    #[test]
    fn ordinary_output_is_no_panic() {
        let (words, text) = watch(&[b"Linux version\n", &[0xff; 5000], b"\n"]);
        assert_eq!(words, None);
        assert_eq!(text.len(), 14 + 5000 + 1);
    }
}
