//! The life of a container, one file per operation.

mod create;
mod image_volumes;
mod log;
mod remove;
mod start;
mod stop;

pub(crate) use create::create;
pub(crate) use log::reopen;
pub(crate) use remove::{forget, remove, undo_container_step};
pub(crate) use start::start;
pub(crate) use stop::stop;
