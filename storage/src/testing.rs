//! What the tests of this crate share: an executor, a crash at every await, golden files.

use std::cell::Cell;
use std::future::Future;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::engine::SimDisk;
use crate::engine::sim::{SimHook, SimOp};

/// Runs a future whose operations never wait.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
    }
}

/// A hook that makes every operation wait once before and once after its effect.
struct OneStep;

impl SimHook for OneStep {
    fn operation(&self, _: SimOp<'_>) -> Pin<Box<dyn Future<Output = ()>>> {
        let mut waited = false;
        Box::pin(std::future::poll_fn(move |_| {
            if std::mem::replace(&mut waited, true) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        }))
    }
}

/// Runs `work` again and again on a fresh disk, with a loss of power at the first await, the second, and so on; each
/// time `check` sees the disk afterwards and the last value that `work` had set.
pub(crate) fn crash_points<F, T>(
    seed: u64,
    prepare: impl Fn(&SimDisk),
    work: impl Fn(SimDisk, Rc<Cell<T>>) -> F,
    check: impl Fn(SimDisk, T),
) where
    F: Future<Output = ()>,
    T: Copy + Default,
{
    for point in 0.. {
        let disk = SimDisk::immediate(seed.wrapping_mul(1_000_003) + point);
        prepare(&disk);
        let done = Rc::new(Cell::new(T::default()));
        let finished = {
            let mut future = pin!(work(disk.with_hook(Rc::new(OneStep)), done.clone()));
            let mut context = Context::from_waker(Waker::noop());
            (0..point).any(|_| future.as_mut().poll(&mut context).is_ready())
        };
        disk.crash();
        check(disk, done.get());
        if finished {
            return;
        }
        assert!(point < 100_000, "the work never ends");
    }
}

/// Compares bytes with a golden file; writes the file where `MAINSTAY_BLESS` is set.
pub(crate) fn golden(name: &str, bytes: &[u8]) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if std::env::var_os("MAINSTAY_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().expect("in a directory")).expect("create");
        std::fs::write(&path, bytes).expect("write");
    }
    let stored = std::fs::read(&path).expect("golden file; set MAINSTAY_BLESS to write it");
    assert!(
        stored == bytes,
        "{name} differs from its golden file: a format change needs a new version"
    );
}
