//! Versions of the specification.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A version of the CNI specification that we speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub enum SpecVersion {
    /// 0.3.1
    #[serde(rename = "0.3.1")]
    V0_3_1,
    /// 0.4.0: CHECK, and the previous result for DEL.
    #[serde(rename = "0.4.0")]
    V0_4_0,
    /// 1.0.0: results without an address family.
    #[serde(rename = "1.0.0")]
    V1_0_0,
    /// 1.1.0: GC and STATUS.
    #[serde(rename = "1.1.0")]
    V1_1_0,
}

impl SpecVersion {
    /// All of them, oldest first.
    pub(crate) const ALL: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// As configurations and results write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|v| v.as_str() == text)
    }
}

impl fmt::Display for SpecVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
