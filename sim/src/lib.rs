//! A whole cluster in one thread with a hostile disk and network.

#![forbid(unsafe_code)]
