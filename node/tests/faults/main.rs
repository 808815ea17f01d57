//! Faults of `docs/faults.md`, played against clusters of real processes: the built binary, its supervisors, real sockets and
//! real file systems. The number of each fault stands at its test.
//!
//! Rules that hold for every test:
//!
//! * A writer knows what was acknowledged; at the end everything is read back: nothing lost, nothing twice, nothing out of
//!   order.
//! * Service is waited for, with a limit. Nothing waits for a time to pass, but for the proof that something does *not* happen.
//! * What needs root runs in namespaces of its own and leaves no mount, no network and no process behind. Where it is not
//!   allowed the test says that it was skipped; in CI that is a failure.

mod bad_input;
mod clients;
mod disks;
mod external_fence;
mod full_disks;
mod hooks;
mod image;
mod kills;
mod nbd_clients;
mod network;
mod pauses;
mod rig;
mod sandbox;
#[path = "../tools/mod.rs"]
mod tools;
