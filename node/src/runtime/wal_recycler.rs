//! Gives back segments of a log that are no longer part of it, beside everything else and one volume's one after the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use mainstay_storage::engine::{Engine, run_on};
use mainstay_storage::wal::RecyclePlan;

/// Between two files.
const NAP: Duration = Duration::from_millis(40);

/// Ends what it does when it is dropped: nothing touches the directory afterwards. What was left comes back at the next open.
#[derive(Debug, Default)]
pub(super) struct Recycler {
    stop: Arc<AtomicBool>,
    newest: Option<JoinHandle<()>>,
}

impl Recycler {
    /// Carries a plan out after those before it.
    pub(super) fn start(&mut self, plan: RecyclePlan) {
        if plan.is_empty() {
            return;
        }
        let (before, stop) = (self.newest.take(), self.stop.clone());
        let spawned = std::thread::Builder::new()
            .name("wal-recycle".to_owned())
            .spawn(move || {
                if let Some(before) = before {
                    let _panicked = before.join();
                }
                carry_out(plan, &stop);
            });
        match spawned {
            Ok(thread) => self.newest = Some(thread),
            Err(error) => tracing::warn!(%error, "segments stay until the next start"),
        }
    }
}

impl Drop for Recycler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(newest) = self.newest.take() {
            let _panicked = newest.join();
        }
    }
}

fn carry_out(plan: RecyclePlan, stop: &Arc<AtomicBool>) {
    let goes_on = {
        let stop = stop.clone();
        move || !stop.load(Ordering::Relaxed)
    };
    if !goes_on() {
        return;
    }
    let nap = move || {
        std::thread::sleep(NAP);
        goes_on()
    };
    let ran = run_on(Engine::Threads, |disk| async move {
        plan.run_gently(&disk, nap).await
    });
    if let Err(error) = ran.and_then(|gone| gone) {
        tracing::warn!(%error, "segments stay until the next start");
    }
}
