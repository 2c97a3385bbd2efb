//! pod-server (see ARCHITECTURE.md).
