//! virtio-devices (see ARCHITECTURE.md).
