//! image-store (see ARCHITECTURE.md).
