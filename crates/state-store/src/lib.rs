//! state-store (see ARCHITECTURE.md).
