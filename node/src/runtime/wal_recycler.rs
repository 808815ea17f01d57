//! Gives back segments of a log that are no longer part of it, beside everything else and one volume's one after the other.
//!
//! A segment goes only after every older one: a hole would look like damage at the next start.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use mainstay_storage::engine::{Engine, run_on};
use mainstay_storage::wal::{RecycleError, RecyclePlan};

/// Between two files.
const NAP: Duration = Duration::from_millis(40);

/// What the machine refused for now is tried again after this.
const REFUSED_AGAIN: Duration = Duration::from_secs(1);

/// Ends what it does when it is dropped: nothing touches the directory afterwards. What was left comes back at the next open.
#[derive(Debug, Default)]
pub(super) struct Recycler {
    shared: Arc<Shared>,
    /// The newest; those before it are done with the directory.
    thread: Option<JoinHandle<()>>,
}

impl Recycler {
    /// Carries a plan out after those before it.
    pub(super) fn start(&mut self, plan: RecyclePlan) {
        self.start_on(plan, spawn);
    }

    fn start_on(
        &mut self,
        plan: RecyclePlan,
        spawn: fn(Arc<Shared>) -> io::Result<JoinHandle<()>>,
    ) {
        let mut plans = self.shared.plans();
        if plan.is_empty() || plans.state == PlansState::BrokenOff {
            return;
        }
        plans.waiting.push_back(plan);
        if plans.state == PlansState::UnderWay {
            return;
        }
        match spawn(self.shared.clone()) {
            Ok(thread) => {
                plans.state = PlansState::UnderWay;
                self.thread = Some(thread);
            }
            Err(error) => tracing::warn!(%error, "segments stay until the next ones go"),
        }
    }
}

impl Drop for Recycler {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _panicked = thread.join();
        }
    }
}

/// What the thread is told.
#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    plans: Mutex<Plans>,
}

#[derive(Debug, Default)]
struct Plans {
    /// Oldest first.
    waiting: VecDeque<RecyclePlan>,
    state: PlansState,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum PlansState {
    /// No thread looks at the plans.
    #[default]
    Idle,
    /// A thread carries them out, and looks for more before it ends.
    UnderWay,
    /// The disk refused one half way. Whether its last file went is unknown, so nothing behind it may go in this process.
    BrokenOff,
}

impl Shared {
    fn plans(&self) -> MutexGuard<'_, Plans> {
        self.plans.lock().expect("no panic while the lock is held")
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// The oldest plan, unless the thread is to end.
    fn next(&self) -> Option<RecyclePlan> {
        let mut plans = self.plans();
        let next = plans.waiting.pop_front().filter(|_| self.goes_on());
        if next.is_none() {
            plans.state = PlansState::Idle;
        }
        next
    }

    fn break_off(&self) {
        *self.plans() = Plans {
            waiting: VecDeque::new(),
            state: PlansState::BrokenOff,
        };
    }
}

fn spawn(shared: Arc<Shared>) -> io::Result<JoinHandle<()>> {
    spawn_with(shared, carry_out)
}

fn spawn_with(
    shared: Arc<Shared>,
    mut carry_out: impl FnMut(&RecyclePlan, &Arc<Shared>) -> Result<(), RecycleError> + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let run = move || {
        let mut refused = false;
        while let Some(plan) = shared.next() {
            loop {
                match carry_out(&plan, &shared) {
                    Ok(()) => break refused = false,
                    // One moment without a descriptor would keep every segment from here on.
                    Err(RecycleError::Refused(error)) => {
                        if !std::mem::replace(&mut refused, true) {
                            tracing::warn!(%error, "segments stay until the machine can give them back");
                        }
                        std::thread::park_timeout(REFUSED_AGAIN);
                        if !shared.goes_on() {
                            break;
                        }
                    }
                    Err(RecycleError::Failed(error)) => {
                        shared.break_off();
                        tracing::warn!(%error, "segments stay until the next start");
                        return;
                    }
                }
            }
        }
    };
    std::thread::Builder::new()
        .name("wal-recycle".to_owned())
        .spawn(run)
}

fn carry_out(plan: &RecyclePlan, shared: &Arc<Shared>) -> Result<(), RecycleError> {
    let nap = || {
        std::thread::sleep(NAP);
        shared.goes_on()
    };
    let ran = run_on(Engine::Threads, |disk| async move {
        plan.run_gently(&disk, nap).await
    });
    // Without a runtime nothing was begun.
    ran.map_err(RecycleError::Refused)?.map(drop)
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use mainstay_storage::format::{EntryKind, encode_unstamped, stamp};
    use mainstay_storage::{LogEnd, Wal, WalConfig};
    use mainstay_types::{Epoch, Incarnation, Lineage, LogPoint, Lsn, SessionId};

    use super::*;

    const LINEAGE: Lineage = Lineage(0xabcd);

    fn config() -> WalConfig {
        WalConfig {
            segment_bytes: 64 << 10,
            ..WalConfig::new(LINEAGE, Incarnation(3))
        }
    }

    /// A log of some twelve segments in `dir`, and the plans to give back what lies below two positions, the lower one first.
    fn log_with_two_plans(dir: &Path) -> [RecyclePlan; 2] {
        let dir = dir.to_owned();
        run_on(Engine::Threads, |disk| async move {
            let mut wal = Wal::create(disk, &dir, config(), LogEnd::ZERO)
                .await
                .expect("created");
            let mut end = LogEnd::ZERO;
            for lsn in (1..=60).map(Lsn) {
                let mut entry =
                    encode_unstamped(EntryKind::Record, SessionId(1), 2, lsn.0, 4, &[7; 9000]);
                let crc = stamp(&mut entry, LINEAGE, Epoch(1), lsn, end.crc);
                let point = LogPoint {
                    epoch: Epoch(1),
                    lsn,
                };
                end = LogEnd { point, crc };
                let appended = wal.append(&[entry.freeze()], Lsn::ZERO).await;
                appended.map(drop).expect("appended");
            }
            [Lsn(30), Lsn(45)].map(|below| wal.plan_recycle(below))
        })
        .expect("runs")
    }

    /// Opens the log again, which must be whole to its end, and says where it begins.
    fn first_after_restart(dir: &Path) -> Lsn {
        let dir = dir.to_owned();
        run_on(Engine::Threads, |disk| async move {
            let (wal, log) = Wal::open(disk, &dir, config()).await.expect("opened");
            assert_eq!((log.doubt, log.damage), (None, None));
            assert_eq!(wal.durable().point().lsn, Lsn(60));
            wal.first_lsn()
        })
        .expect("runs")
    }

    /// The log's files, oldest first.
    fn segments(dir: &Path) -> Vec<PathBuf> {
        let found = std::fs::read_dir(dir).expect("listed");
        let mut paths: Vec<PathBuf> = found.map(|entry| entry.expect("an entry").path()).collect();
        paths.sort();
        paths
    }

    fn wait_for(recycler: &mut Recycler) {
        if let Some(thread) = recycler.thread.take() {
            thread.join().expect("no panic");
        }
    }

    /// The disk refused to unlink a segment, the plan behind went on with those after it, and the hole that stayed was told as damage
    /// at the next start, although every entry was there.
    #[test]
    fn what_the_disk_refused_to_give_back_stays_with_all_behind_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let [first, second] = log_with_two_plans(dir.path());
        let before = segments(dir.path());
        let mut recycler = Recycler::default();

        // A directory cannot be unlinked.
        let (stubborn, aside) = (&before[2], dir.path().join("elsewhere"));
        std::fs::rename(stubborn, &aside).expect("renamed");
        std::fs::create_dir(stubborn).expect("made");
        recycler.start(first);
        wait_for(&mut recycler);
        std::fs::remove_dir(stubborn).expect("removed");
        std::fs::rename(&aside, stubborn).expect("renamed");
        recycler.start(second);
        wait_for(&mut recycler);

        assert_eq!(segments(dir.path()), before[2..]);
        let first = first_after_restart(dir.path());
        assert!(first > Lsn(1) && first < Lsn(30), "begins at {first}");
    }

    /// The plan was dropped with the thread that could not be had, and the one behind it left a hole.
    #[test]
    fn plans_without_a_thread_go_before_the_next() {
        let dir = tempfile::tempdir().expect("a directory");
        let [first, second] = log_with_two_plans(dir.path());
        let mut recycler = Recycler::default();
        recycler.start_on(first, |_| Err(io::Error::other("no thread to be had")));
        recycler.start(second);
        wait_for(&mut recycler);

        let first = first_after_restart(dir.path());
        assert!(first > Lsn(30) && first <= Lsn(45), "begins at {first}");
    }

    /// One moment without a descriptor broke the plan off, and no segment of the log went any more until the next start.
    #[test]
    fn what_the_machine_refused_for_now_goes_later() {
        let dir = tempfile::tempdir().expect("a directory");
        let [first, second] = log_with_two_plans(dir.path());
        let mut recycler = Recycler::default();
        recycler.start_on(first, |shared| {
            let mut refusals = 1;
            spawn_with(shared, move |plan, shared| {
                if refusals > 0 {
                    refusals -= 1;
                    return Err(RecycleError::Refused(io::Error::from_raw_os_error(24)));
                }
                carry_out(plan, shared)
            })
        });
        recycler.start(second);
        wait_for(&mut recycler);

        let first = first_after_restart(dir.path());
        assert!(first > Lsn(30) && first <= Lsn(45), "begins at {first}");
    }

    #[test]
    fn a_machine_that_refuses_for_ever_keeps_nobody_from_stopping() {
        let dir = tempfile::tempdir().expect("a directory");
        let [first, _] = log_with_two_plans(dir.path());
        let mut recycler = Recycler::default();
        recycler.start_on(first, |shared| {
            spawn_with(shared, |_, _| {
                Err(RecycleError::Refused(io::Error::from_raw_os_error(24)))
            })
        });
        drop(recycler);
        assert_eq!(first_after_restart(dir.path()), Lsn(1));
    }
}
