//! spherule (see ARCHITECTURE.md).

fn main() {}
