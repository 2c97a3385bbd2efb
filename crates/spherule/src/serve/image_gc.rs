//! When unused images are removed to make room.

use anyhow::bail;
use image_store::Watermarks;
use std::time::Duration;

/// Lower mark where only the high one is given, this far below it.
const DISTANCE: u8 = 5;

/// Off unless the high mark is given: a kubelet collects images by itself, and an
/// imported image that is gone cannot be pulled again.
#[derive(Debug, clap::Args)]
pub(super) struct ImageGcArgs {
    /// Hundredths of the disk below --root: once so much is used, unused images are
    /// removed, the least recently used first. Without it none is: a kubelet does it
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
    image_gc_high: Option<u8>,
    /// Hundredths of the disk that may stay used then [default: 5 below the high mark]
    #[arg(long, value_name = "PERCENT", requires = "image_gc_high", value_parser = clap::value_parser!(u8).range(0..100))]
    image_gc_low: Option<u8>,
    /// How long an image stays after it came or was last used
    #[arg(long, value_parser = humantime::parse_duration, default_value = "2m")]
    image_gc_min_age: Duration,
}

impl ImageGcArgs {
    /// The marks, checked.
    pub(super) fn watermarks(&self) -> anyhow::Result<Option<Watermarks>> {
        let Some(high) = self.image_gc_high else {
            return Ok(None);
        };
        let low = self.image_gc_low.unwrap_or(high.saturating_sub(DISTANCE));
        if low >= high {
            bail!("--image-gc-low {low}: must be below --image-gc-high, which is {high}");
        }
        Ok(Some(Watermarks {
            high,
            low,
            min_age: self.image_gc_min_age,
        }))
    }
}
