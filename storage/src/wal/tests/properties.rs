//! What holds of any log: after any sequence of operations with a loss of power anywhere, and whichever bit is flipped.

use std::cell::Cell;
use std::rc::Rc;

use proptest::prelude::*;

use super::*;
use crate::testing::crash_points;

/// Flips each bit of a small log: never is the durable prefix shorter without a word.
#[test]
fn no_flipped_bit_shortens_the_log_in_silence() {
    let disk = SimDisk::immediate(10);
    let mut wal = create(&disk);
    append(&mut wal, &[10]);
    append(&mut wal, &[20, 30]);
    append(&mut wal, &[5]);
    let content = disk.peek(&segment(1)).expect("there");
    let used = 4 * 4096;
    for bit in 0..used * 8 {
        // Bytes that are zero in the middle of padding: one in sixteen is enough.
        if content[bit / 8] == 0 && bit % 16 != 0 && bit / 8 % 4096 > 400 {
            continue;
        }
        let mut bad = content[..used].to_vec();
        bad[bit / 8] ^= 1 << (bit % 8);
        bad.resize(content.len(), 0);
        disk.plant(&segment(1), &bad);
        match block_on(Wal::open(disk.clone(), Path::new(DIR), config())) {
            Ok((_, log)) => assert!(
                log.doubt.is_some() || log.damage.is_some(),
                "bit {} of byte {}: {log:?}",
                bit % 8,
                bit / 8
            ),
            Err(error) => panic!("bit {bit}: {error}"),
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<usize>),
    Cut(u64),
    Mark,
    Prepare,
    Recycle(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => prop::collection::vec(0_usize..9000, 1..4).prop_map(Step::Append),
        1 => (0_u64..4).prop_map(Step::Cut),
        2 => Just(Step::Mark),
        1 => Just(Step::Prepare),
        1 => (0_u64..6).prop_map(Step::Recycle),
    ];
    prop::collection::vec(step, 1..9)
}

/// What a checker knows of a log: entries by LSN, and how far it was promised.
#[derive(Clone, Copy, Default)]
struct Promise {
    /// Everything up to here was durable and not asked to be cut.
    durable: u64,
    /// Nothing above was ever handed over.
    handed: u64,
    epoch: u64,
}

async fn run_steps(disk: SimDisk, steps: Vec<Step>, promise: Rc<Cell<Promise>>) {
    let (mut wal, log) = Wal::open(disk.clone(), Path::new(DIR), config())
        .await
        .expect("open");
    assert_eq!(log.damage, None);
    let mut epoch = promise.get().epoch.max(log.last.epoch.0) + 1;
    for step in steps {
        let mut end = wal.durable().end();
        match step {
            Step::Append(sizes) => {
                let entries = batch(&mut end, epoch, &sizes);
                let before = promise.get();
                promise.set(Promise {
                    handed: end.point.lsn.0.max(before.handed),
                    epoch,
                    ..before
                });
                wal.append(&entries, Lsn(0))
                    .await
                    .map(drop)
                    .expect("append");
                promise.set(Promise {
                    durable: end.point.lsn.0,
                    ..promise.get()
                });
            }
            Step::Cut(count) => {
                let to = Lsn(end
                    .point
                    .lsn
                    .0
                    .saturating_sub(count)
                    .max(wal.first_lsn().prev().0));
                promise.set(Promise {
                    durable: promise.get().durable.min(to.0),
                    ..promise.get()
                });
                wal.truncate_after(to).await.map(drop).expect("cut");
                epoch += 1;
            }
            Step::Mark => wal.mark(Lsn(0)).await.expect("mark"),
            Step::Prepare => wal.prepare_next().await.expect("prepare"),
            Step::Recycle(behind) => {
                let below = Lsn(end.point.lsn.0.saturating_sub(behind));
                let plan = wal.plan_recycle(below);
                if behind % 2 == 0 {
                    plan.run(&disk).await.map(drop).expect("recycle");
                } else {
                    // It may be told to leave off.
                    let mut naps = behind % 5;
                    let nap = || {
                        naps += 1;
                        !naps.is_multiple_of(4)
                    };
                    plan.run_gently(&disk, nap)
                        .await
                        .map(drop)
                        .expect("recycle");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// A loss of power at every await of any sequence of operations, then another sequence and another loss.
    #[test]
    fn a_crash_anywhere_keeps_what_was_promised_and_is_never_called_damage(
        seed in 0_u64..1_000_000,
        first in steps(),
        second in steps(),
    ) {
        crash_points(
            seed,
            |disk| {
                create(disk);
                block_on(run_steps(disk.clone(), first.clone(), Rc::default()));
            },
            |disk, promise| {
                let steps = second.clone();
                async move {
                    let (wal, log) = Wal::open(disk.clone(), Path::new(DIR), config()).await.expect("open");
                    drop(wal);
                    let last = log.last.lsn.0;
                    promise.set(Promise { durable: last, handed: last, epoch: log.last.epoch.0 });
                    run_steps(disk, steps, promise).await;
                }
            },
            |disk, promise: Promise| {
                let (mut wal, log) = open(&disk);
                assert_eq!(log.damage, None, "a crash is not damage");
                assert!(log.last.lsn.0 >= promise.durable, "{} of {} promised", log.last.lsn, promise.durable);
                if promise.handed > 0 {
                    assert!(log.last.lsn.0 <= promise.handed, "{} of {} handed over", log.last.lsn, promise.handed);
                }
                if log.last.lsn >= log.first_lsn {
                    check_contents(&wal);
                }
                let end = append(&mut wal, &[50]);
                disk.crash();
                let (wal, log) = open(&disk);
                assert_eq!((log.last, log.doubt, log.damage), (end.point, None, None));
                check_contents(&wal);
            },
        );
    }
}
