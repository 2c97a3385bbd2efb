//! erofs-writer (see ARCHITECTURE.md).
