//! The binary `mainstay`.

fn main() {}
