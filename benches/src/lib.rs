//! Measures; nothing depends on it.
//!
//! [`disk`] is the medium alone, [`floor`] the least that a replicated append can cost on this machine, [`report`]
//! what a run prints, [`cpu`] what processes use; [`product`] is a cluster with one log, [`loads`] what it is put under, and [`etcd`] and
//! [`postgres`] are what others build a ledger on. A measurement of the product uses the same loads and prints rows beside those of the floor.

#![forbid(unsafe_code)]

pub mod cpu;
pub mod disk;
pub mod etcd;
pub mod floor;
pub mod loads;
pub mod postgres;
pub mod product;
pub mod report;
