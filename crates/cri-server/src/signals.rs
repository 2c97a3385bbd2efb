//! Signals: the CRI's names and the kernel's numbers.

use cri_api::v1::Signal;
use sandbox::{signal_name, signal_number};

/// The number that the CRI's name means; 0: the image's own.
pub(crate) fn from_cri(signal: Signal) -> u32 {
    let name = signal.as_str_name();
    let name = name.strip_prefix("SIGNAL_").unwrap_or(name);
    let name = name.replace("PLUS", "+").replace("MINUS", "-");
    signal_number(&name).unwrap_or(0)
}

/// The CRI's name of a number; of 0: SIGTERM, which is what is sent.
pub(crate) fn to_cri(number: u32) -> Signal {
    if number == 0 {
        return Signal::Sigterm;
    }
    let name = signal_name(number).and_then(|name| {
        let name = name.replace('+', "PLUS").replace('-', "MINUS");
        Signal::from_str_name(&format!("SIGNAL_SIG{name}"))
    });
    name.unwrap_or(Signal::RuntimeDefault)
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
}
