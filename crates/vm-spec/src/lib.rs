//! vm-spec (see ARCHITECTURE.md).
