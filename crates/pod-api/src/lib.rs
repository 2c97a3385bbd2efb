//! pod-api (see ARCHITECTURE.md).
