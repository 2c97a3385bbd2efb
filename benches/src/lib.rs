//! spherule-bench (see ARCHITECTURE.md).
