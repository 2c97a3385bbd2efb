//! spherule-vmm (see ARCHITECTURE.md).

fn main() {}
