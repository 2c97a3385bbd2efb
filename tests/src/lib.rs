//! spherule-tests (see ARCHITECTURE.md).
