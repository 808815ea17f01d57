//! Delays of a simulated disk: every operation waits before and after its effect, so that a process can end in
//! between. The faults themselves are `mainstay_storage::engine::sim`'s; its head states the model.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use mainstay_replication::Rng;
use mainstay_storage::engine::sim::{OpKind, SimHook, SimOp, Stage};

use crate::executor::Executor;

/// How slow a disk is.
#[derive(Debug, Clone, Copy)]
pub struct DiskSpeed {
    /// Longest ordinary write or read.
    pub operation_ns: u64,
    /// Longest ordinary sync.
    pub sync_ns: u64,
    /// One operation in this many takes up to a hundred times as long; zero for none.
    pub slow_one_in: u64,
}

/// The hook of one node's disk.
#[derive(Debug)]
pub struct Delays {
    executor: Executor,
    rng: Rc<RefCell<Rng>>,
    speed: DiskSpeed,
}

impl Delays {
    /// Delays drawn from `seed`.
    #[must_use]
    pub fn new(executor: Executor, seed: u64, speed: DiskSpeed) -> Rc<Self> {
        Rc::new(Self {
            executor,
            rng: Rc::new(RefCell::new(Rng::new(seed))),
            speed,
        })
    }
}

impl SimHook for Delays {
    fn operation(&self, op: SimOp<'_>) -> Pin<Box<dyn Future<Output = ()>>> {
        let longest = match (op.kind, op.stage) {
            (OpKind::Sync, Stage::Before) | (OpKind::SyncDir, Stage::Before) => self.speed.sync_ns,
            (OpKind::Write, Stage::Before) | (OpKind::Sync, Stage::After) => {
                self.speed.operation_ns
            }
            (OpKind::Read, Stage::Before) => self.speed.operation_ns / 4,
            _ => 0,
        };
        if longest == 0 {
            return Box::pin(std::future::ready(()));
        }
        let mut rng = self.rng.borrow_mut();
        let mut nanos = 1_000 + rng.below(longest);
        if self.speed.slow_one_in > 0 && rng.below(self.speed.slow_one_in) == 0 {
            nanos *= 1 + rng.below(100);
        }
        Box::pin(self.executor.sleep(nanos))
    }
}
