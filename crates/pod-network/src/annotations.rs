//! Limits of a pod's traffic as Kubernetes' annotations give them.

use crate::cni::request::Bandwidth;
use quantity::{Quantity, QuantityError};
use std::ops::RangeInclusive;

/// To the pod, in bits a second.
const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
/// From the pod, in bits a second.
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// 1 kbit to 1 Pbit a second, as other runtimes have it.
const RATES: RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;

/// An annotation that is no rate.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AnnotationError {
    /// Not an amount.
    #[error("annotation {name}")]
    Quantity {
        /// Which.
        name: &'static str,
        /// What is wrong with it.
        #[source]
        source: QuantityError,
    },
    /// An amount that no traffic has.
    #[error("annotation {name}: {value:?} must be 1k to 1P bits a second")]
    Range {
        /// Which.
        name: &'static str,
        /// As it was given.
        value: String,
    },
}

impl Bandwidth {
    /// The limits that annotations give, looked up by name; `None` where they give
    /// none.
    ///
    /// # Errors
    ///
    /// An annotation is no rate.
    pub fn from_annotations<'a>(
        annotation: impl Fn(&str) -> Option<&'a str>,
    ) -> Result<Option<Self>, AnnotationError> {
        let rate = |name: &'static str| {
            let Some(value) = annotation(name) else {
                return Ok(None);
            };
            let amount: Quantity = value
                .parse()
                .map_err(|source| AnnotationError::Quantity { name, source })?;
            let bits = amount.ceil();
            if !RATES.contains(&bits) {
                let value = value.to_owned();
                return Err(AnnotationError::Range { name, value });
            }
            Ok(Some(bits))
        };
        let (ingress, egress) = (rate(INGRESS)?, rate(EGRESS)?);
        Ok((ingress.is_some() || egress.is_some()).then(|| Self::from_rates(ingress, egress)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(annotations: &[(&str, &'static str)]) -> Result<Option<Bandwidth>, AnnotationError> {
        Bandwidth::from_annotations(|name| {
            let found = annotations.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| *value)
        })
    }

    #[test]
    fn rates_are_quantities_in_bits() {
        assert_eq!(of(&[("other", "1")]), Ok(None));
        let both = of(&[(INGRESS, "10M"), (EGRESS, "1Gi")]).unwrap().unwrap();
        assert_eq!(both.ingress_rate, 10_000_000);
        assert_eq!(both.egress_rate, 1 << 30);
        let one = of(&[(EGRESS, "1k")]).unwrap().unwrap();
        assert_eq!((one.ingress_rate, one.egress_rate), (0, 1000));
    }

    #[test]
    fn what_is_no_rate_is_refused() {
        for value in ["", "fast", "-1M", "999", "2P"] {
            assert!(of(&[(INGRESS, value)]).is_err(), "{value}");
        }
    }
}
