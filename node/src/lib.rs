//! Wiring only: runtime, sockets, gRPC, config, metrics.

#![forbid(unsafe_code)]

pub mod cli;
pub mod commands;
pub mod config;
pub mod demo;
pub mod devcluster;
pub mod dispatch;
mod files;
mod http;
pub mod locate;
pub mod logging;
pub mod nbd_export;
pub mod processes;
pub mod release;
pub mod runtime;
pub mod supervisor;
pub mod up;
pub mod wire;
pub mod worker;
