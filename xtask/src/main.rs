//! The project's own commands: the gate, and the measurements that need whole clusters.

#![forbid(unsafe_code)]
fn main() {}
