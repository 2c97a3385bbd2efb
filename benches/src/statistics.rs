//! Medians: the machines are shared and noisy, means would tell of the noise.

use serde::Serialize;

/// What is said of one figure measured several times.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Summary {
    pub(crate) min: f64,
    pub(crate) median: f64,
    /// 95 of 100 measurements are at most this.
    pub(crate) p95: f64,
    pub(crate) max: f64,
    /// All measurements, in the order they were taken.
    pub(crate) runs: Vec<f64>,
}

impl Summary {
    /// Of at least one measurement; `None` of none.
    pub(crate) fn of(runs: Vec<f64>) -> Option<Self> {
        let mut sorted = runs.clone();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        // The smallest measurement that 95 % do not exceed (nearest rank).
        let rank = (sorted.len() * 95).div_ceil(100);
        Some(Self {
            min,
            median,
            p95: sorted[rank - 1],
            max,
            runs,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_the_middle_one_or_between_the_two() {
        assert_eq!(Summary::of(vec![3.0, 1.0, 2.0]).unwrap().median, 2.0);
        assert_eq!(Summary::of(vec![4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        assert!(Summary::of(Vec::new()).is_none());
    }

    #[test]
    fn the_95th_percentile_is_a_measurement() {
        let p95 = |count: u32| {
            Summary::of((1..=count).map(f64::from).collect())
                .unwrap()
                .p95
        };
        assert_eq!((p95(1), p95(5), p95(20), p95(100)), (1.0, 5.0, 19.0, 95.0));
    }
}
