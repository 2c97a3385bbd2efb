//! spherule-init (see ARCHITECTURE.md).

fn main() {}
