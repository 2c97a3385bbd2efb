//! sandbox (see ARCHITECTURE.md).
