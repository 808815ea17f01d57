//! Decides: who is primary, what is committed, what may be acknowledged. No I/O, no clock.

#![forbid(unsafe_code)]

pub mod message;
