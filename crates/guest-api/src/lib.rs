//! guest-api (see ARCHITECTURE.md).
