//! A whole cluster in one thread with a hostile disk and network.
//!
//! The code under test is the real one: `Member`, `Beats` and `Witness` of the core, `Volume` over them, and the real
//! log, image and recovery over the simulated disk. What a real node adds around them (threads, sockets, a supervisor)
//! is simulated here, from one seed: the same seed gives the same events, byte for byte.
//!
//! `docs/simulator.md` states the fault model; [`properties`] links each property to its source.

#![forbid(unsafe_code)]

pub mod client;
pub mod clock;
pub mod disk;
pub mod executor;
pub mod mistakes;
pub mod net;
pub mod node;
pub mod properties;
pub mod run;
pub mod scenario;
pub mod trace;
pub mod witness;
pub mod world;
