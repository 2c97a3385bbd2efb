//! The whole device, driven as a guest drives it.
