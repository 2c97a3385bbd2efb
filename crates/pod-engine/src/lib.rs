//! pod-engine (see ARCHITECTURE.md).
