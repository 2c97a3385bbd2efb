//! Signals: the CRI's names and the kernel's numbers.

use cri_api::v1::Signal;

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
pub(crate) fn number(name: &str) -> Option<u32> {
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

/// The number that the CRI's name means; 0: the image's own.
pub(crate) fn from_cri(signal: Signal) -> u32 {
    let name = signal.as_str_name();
    let name = name.strip_prefix("SIGNAL_").unwrap_or(name);
    let name = name.replace("PLUS", "+").replace("MINUS", "-");
    number(&name).unwrap_or(0)
}

/// The CRI's name of a number; of 0: SIGTERM, which is what is sent.
pub(crate) fn to_cri(number: u32) -> Signal {
    if number == 0 {
        return Signal::Sigterm;
    }
    let known = NAMES.iter().find(|(_, known)| *known == number);
    let name = match known {
        Some((name, _)) => format!("SIGNAL_SIG{name}"),
        None if number == RTMIN => "SIGNAL_SIGRTMIN".to_owned(),
        None if number == RTMAX => "SIGNAL_SIGRTMAX".to_owned(),
        None if number <= RTMIN + 15 => {
            format!("SIGNAL_SIGRTMINPLUS{}", number.saturating_sub(RTMIN))
        }
        None => format!("SIGNAL_SIGRTMAXMINUS{}", RTMAX.saturating_sub(number)),
    };
    Signal::from_str_name(&name).unwrap_or(Signal::RuntimeDefault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_of_the_cri_has_a_number() {
        for value in 1..=65 {
            let signal = Signal::try_from(value).unwrap();
            let number = from_cri(signal);
            assert!(number > 0, "{signal:?}");
            assert_eq!(from_cri(to_cri(number)), number, "{signal:?}");
        }
        assert_eq!(from_cri(Signal::RuntimeDefault), 0);
        assert_eq!(from_cri(Signal::Sigrtminplus3), 37);
        assert_eq!(from_cri(Signal::Sigrtmaxminus14), 50);
    }

    #[test]
    fn every_number_has_a_name() {
        for number in (1..=31).chain(34..=64) {
            assert_eq!(from_cri(to_cri(number)), number);
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
            assert_eq!(number(name), wanted, "{name}");
        }
    }
}
