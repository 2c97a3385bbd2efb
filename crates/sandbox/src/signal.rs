//! Signals: their names and the kernel's numbers.

/// First real-time signal as the C library leaves it to programs.
const RTMIN: u32 = 34;
/// Last one.
const RTMAX: u32 = 64;

/// Names and numbers on x86-64; of two names of one number the usual one first.
const NAMES: [(&str, u32); 34] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// The number of a signal as an image writes it: "SIGTERM", "TERM", "15",
/// "SIGRTMIN+3". `None`: there is no such signal.
pub fn signal_number(name: &str) -> Option<u32> {
    if let Ok(number) = name.parse::<u32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let bare = name.strip_prefix("SIG").unwrap_or(name);
    if let Some(offset) = bare.strip_prefix("RTMIN") {
        let offset = offset.strip_prefix('+').map_or(Ok(0), str::parse::<u32>);
        return offset
            .ok()
            .filter(|n| *n <= RTMAX - RTMIN)
            .map(|n| RTMIN + n);
    }
    if let Some(offset) = bare.strip_prefix("RTMAX") {
        let offset = offset.strip_prefix('-').map_or(Ok(0), str::parse::<u32>);
        return offset
            .ok()
            .filter(|n| *n <= RTMAX - RTMIN)
            .map(|n| RTMAX - n);
    }
    NAMES
        .iter()
        .find(|(known, _)| *known == bare)
        .map(|(_, number)| *number)
}

/// The name of a number, without "SIG": "TERM", "RTMIN+3". `None`: there is no such
/// signal, or the C library keeps it to itself.
pub fn signal_name(number: u32) -> Option<String> {
    if let Some((name, _)) = NAMES.iter().find(|(_, known)| *known == number) {
        return Some((*name).to_owned());
    }
    match number {
        RTMIN => Some("RTMIN".to_owned()),
        RTMAX => Some("RTMAX".to_owned()),
        // Each is called by the end that it is nearer to.
        _ if (RTMIN..=RTMIN + 15).contains(&number) => Some(format!("RTMIN+{}", number - RTMIN)),
        _ if (RTMIN..=RTMAX).contains(&number) => Some(format!("RTMAX-{}", RTMAX - number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_its_number() {
        for number in (1..=31).chain(RTMIN..=RTMAX) {
            let name = signal_name(number).unwrap();
            assert_eq!(signal_number(&name), Some(number), "{name}");
        }
        for number in [0, 32, 33, 65, u32::MAX] {
            assert_eq!(signal_name(number), None);
        }
    }

    #[test]
    fn images_write_signals_by_name_or_number() {
        for (name, wanted) in [
            ("SIGTERM", Some(15)),
            ("QUIT", Some(3)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX", Some(64)),
            ("RTMIN+31", None),
            ("FLY", None),
            ("0", None),
            ("", None),
        ] {
            assert_eq!(signal_number(name), wanted, "{name}");
        }
    }
}
