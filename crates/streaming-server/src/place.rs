//! What all sessions of a server have in common.

use crate::backend::Backend;
use crate::ending::Ending;
use crate::limits::Limits;
use crate::spill::SpillSpace;
use std::sync::Arc;

/// Where sessions are served.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) limits: Limits,
    pub(crate) spill: Option<Arc<SpillSpace>>,
    pub(crate) ending: Ending,
}
