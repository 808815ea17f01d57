//! Runs one volume: the replication core over the store, with no socket, no clock and no runtime.

#![forbid(unsafe_code)]
