//! Wiring only: runtime, sockets, gRPC, config, metrics.

#![forbid(unsafe_code)]
