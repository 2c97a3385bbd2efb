//! vm-launcher (see ARCHITECTURE.md).
