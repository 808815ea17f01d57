//! A log by example, on the simulated disk: appends, cuts, recycling, failures and damage.

mod engines;
mod properties;

use mainstay_types::{Epoch, SessionId};

use super::*;
use crate::engine::SimDisk;
use crate::engine::sim::{Fault, OpKind};
use crate::format::{BatchError, EntryKind, encode_unstamped, stamp, verify_batch};
use crate::recovery::scan::segment_name;
use crate::testing::block_on;

const DIR: &str = "/v/wal";
const LINEAGE: Lineage = Lineage(0xabcd);

fn config() -> WalConfig {
    WalConfig {
        segment_bytes: 64 << 10,
        ..WalConfig::new(LINEAGE, Incarnation(3))
    }
}

/// Stamps entries behind `end`.
fn batch(end: &mut LogEnd, epoch: u64, sizes: &[usize]) -> Vec<Bytes> {
    let stamped = sizes.iter().map(|size| {
        let lsn = end.point.lsn.next();
        let payload = vec![u8::try_from(lsn.0 % 251).expect("below 251"); *size];
        let mut entry = encode_unstamped(EntryKind::Record, SessionId(1), 2, lsn.0, 4, &payload);
        let crc = stamp(&mut entry, LINEAGE, Epoch(epoch), lsn, end.crc);
        *end = LogEnd {
            point: LogPoint {
                epoch: Epoch(epoch),
                lsn,
            },
            crc,
        };
        entry.freeze()
    });
    stamped.collect()
}

fn create(disk: &SimDisk) -> Wal<SimDisk> {
    block_on(Wal::create(
        disk.clone(),
        Path::new(DIR),
        config(),
        LogEnd::ZERO,
    ))
    .expect("create")
}

fn open(disk: &SimDisk) -> (Wal<SimDisk>, RecoveredLog) {
    block_on(Wal::open(disk.clone(), Path::new(DIR), config())).expect("open")
}

/// Appends one frame with entries of these sizes.
fn append(wal: &mut Wal<SimDisk>, sizes: &[usize]) -> LogEnd {
    let mut end = wal.durable().end();
    let epoch = end.point.epoch.0.max(1);
    let entries = batch(&mut end, epoch, sizes);
    let durable = block_on(wal.append(&entries, Lsn(0))).expect("append");
    assert_eq!(durable.end(), end);
    end
}

/// Reads the whole log and checks its chain.
fn check_contents(wal: &Wal<SimDisk>) -> u64 {
    let (first, last) = (wal.first_lsn(), wal.durable().point().lsn);
    let reader = wal.reader();
    let mut end = block_on(reader.end_at(first.prev())).expect("the log's beginning");
    while end.point.lsn < last {
        let read =
            block_on(reader.read(end.point.lsn.next(), 3000)).expect("durable entries read back");
        for chunk in &read.chunks {
            let entries = verify_batch(LINEAGE, chunk, end).expect("the chain holds");
            end = entries.last().expect("not empty").header.end();
        }
        assert_eq!(end, read.end);
    }
    assert_eq!(end, wal.durable().end());
    last.0
}

fn segment(seq: u64) -> PathBuf {
    Path::new(DIR).join(segment_name(seq))
}

#[test]
fn what_was_appended_reads_back_across_segments_and_restarts() {
    let disk = SimDisk::immediate(1);
    let mut wal = create(&disk);
    for round in 0..40 {
        append(&mut wal, &[100, 0, 5000 + round]);
        if round % 3 == 0 {
            block_on(wal.mark(Lsn(0))).expect("mark");
        }
        if round % 7 == 0 {
            block_on(wal.prepare_next()).expect("room");
        }
    }
    append(&mut wal, &[300_000]);
    append(&mut wal, &[1]);
    assert_eq!(check_contents(&wal), 122);
    disk.crash();
    let (mut wal, log) = open(&disk);
    assert_eq!(
        (log.last.lsn, log.doubt, &log.damage),
        (Lsn(122), None, &None)
    );
    assert_eq!(log.runs, [(Epoch(1), Lsn(1))]);
    assert_eq!(check_contents(&wal), 122);
    append(&mut wal, &[10]);
    assert_eq!(check_contents(&wal), 123);
}

#[test]
fn large_appends_are_split_and_still_one_answer() {
    let disk = SimDisk::immediate(1);
    let mut wal = create(&disk);
    append(&mut wal, &[700_000, 700_000, 900, 16 << 20]);
    assert_eq!(check_contents(&wal), 4);
    disk.crash();
    assert_eq!(open(&disk).1.last.lsn, Lsn(4));
}

#[test]
fn cuts_take_over_and_new_entries_win() {
    let disk = SimDisk::immediate(2);
    let mut wal = create(&disk);
    append(&mut wal, &[10, 10, 10]);
    append(&mut wal, &[10, 10, 10]);
    let mut end = block_on(wal.truncate_after(Lsn(5)))
        .expect("cut inside a frame")
        .end();
    assert_eq!(end.point.lsn, Lsn(5));
    let entries = batch(&mut end, 2, &[20, 20]);
    block_on(wal.append(&entries, Lsn(6)))
        .map(drop)
        .expect("append");
    assert!(matches!(
        block_on(wal.truncate_after(Lsn(5))),
        Err(WalError::Committed { .. })
    ));
    block_on(wal.truncate_after(Lsn(6)))
        .map(drop)
        .expect("cut above the commit point");
    disk.crash();
    let (mut wal, log) = open(&disk);
    assert_eq!(
        log.last,
        LogPoint {
            epoch: Epoch(2),
            lsn: Lsn(6)
        }
    );
    assert_eq!(log.runs, [(Epoch(1), Lsn(1)), (Epoch(2), Lsn(6))]);
    assert_eq!(
        (log.doubt, log.damage, log.commit_floor),
        (None, None, Lsn(6))
    );
    assert_eq!(check_contents(&wal), 6);
    append(&mut wal, &[1]);
    assert_eq!(check_contents(&wal), 7);
}

#[test]
fn a_log_cut_to_nothing_goes_on_from_its_beginning() {
    let disk = SimDisk::immediate(2);
    let start = LogEnd {
        point: LogPoint {
            epoch: Epoch(4),
            lsn: Lsn(1000),
        },
        crc: 77,
    };
    let mut wal =
        block_on(Wal::create(disk.clone(), Path::new(DIR), config(), start)).expect("create");
    append(&mut wal, &[1, 2, 3]);
    let end = block_on(wal.truncate_after(Lsn(1000))).expect("cut").end();
    assert_eq!(end, start);
    append(&mut wal, &[4]);
    let (wal, log) = open(&disk);
    assert_eq!((log.first_lsn, log.last.lsn), (Lsn(1001), Lsn(1001)));
    assert_eq!(check_contents(&wal), 1001);
}

#[test]
fn recycling_unlinks_whole_segments_and_keeps_the_one_asked_for() {
    let disk = SimDisk::immediate(3);
    let mut wal = create(&disk);
    for _ in 0..30 {
        append(&mut wal, &[9000]);
    }
    let reader = wal.reader();
    assert!(block_on(wal.recycle_below(Lsn(15))).expect("unlink") > 0);
    let first = wal.first_lsn();
    assert!(Lsn(1) < first && first <= Lsn(15));
    assert!(
        matches!(block_on(reader.read(Lsn(1), 1)), Err(ReadError::BelowFirst { first: f }) if f == first)
    );
    assert_eq!(
        block_on(reader.read(Lsn(15), 1)).expect("kept").first,
        Lsn(15)
    );
    disk.crash();
    let (wal, log) = open(&disk);
    assert_eq!(
        (log.first_lsn, log.last.lsn, log.damage),
        (first, Lsn(30), None)
    );
    check_contents(&wal);
}

/// The order of events: a segment was unlinked, and the directory could not be opened to be synced. All behind it stayed until the next
/// start.
#[test]
fn recycling_that_lacks_a_descriptor_is_run_again_and_one_whose_sync_failed_is_not() {
    for again in [true, false] {
        let disk = SimDisk::immediate(3);
        let mut wal = create(&disk);
        for _ in 0..20 {
            append(&mut wal, &[20_000]);
        }
        let plan = wal.plan_recycle(Lsn(15));
        let fault = if again {
            Fault::NoDescriptor
        } else {
            Fault::Eio
        };
        disk.fail_nth(OpKind::SyncDir, 1, fault);
        let refused = block_on(plan.run(&disk)).expect_err("no sync");
        assert_eq!(matches!(refused, RecycleError::Refused(_)), again);
        if again {
            assert!(block_on(plan.run(&disk)).expect("unlinked") > 1);
            disk.crash();
            let (wal, log) = open(&disk);
            assert_eq!((log.last.lsn, log.damage), (Lsn(20), None));
            assert!(wal.first_lsn() > Lsn(3));
        }
    }
}

#[test]
fn a_failed_write_or_sync_ends_the_log_for_this_process() {
    for kind in [OpKind::Write, OpKind::Sync] {
        let disk = SimDisk::immediate(4);
        let mut wal = create(&disk);
        let mut end = append(&mut wal, &[10]);
        let entries = batch(&mut end, 1, &[10]);
        disk.fail_nth(kind, 1, Fault::Eio);
        assert!(matches!(
            block_on(wal.append(&entries, Lsn(0))),
            Err(WalError::Poisoned { .. })
        ));
        assert!(matches!(
            block_on(wal.append(&entries, Lsn(0))),
            Err(WalError::Poisoned { .. })
        ));
        assert!(matches!(
            block_on(wal.mark(Lsn(0))),
            Err(WalError::Poisoned { .. })
        ));
        assert!(matches!(
            block_on(wal.truncate_after(Lsn(1))),
            Err(WalError::Poisoned { .. })
        ));
        assert_eq!(check_contents(&wal), 1);
    }
}

/// A sync fails, and the kernel takes the pages for clean: the process that comes next reads the frame, counts it, and a
/// sync of the file writes nothing. Then the power goes.
#[test]
fn what_an_open_counts_survives_a_loss_of_power_even_if_its_sync_failed_before() {
    let mut counted = 0;
    for seed in 0..200 {
        let disk = SimDisk::immediate(seed);
        let mut wal = create(&disk);
        let mut end = append(&mut wal, &[10]);
        if seed % 2 == 0 {
            // The next frame begins a segment, whose header may be what was not synced.
            block_on(wal.prepare_next()).expect("room");
            end = append(&mut wal, &[40_000]);
        }
        let entries = batch(&mut end, 1, &[30_000]);
        disk.fail_nth(OpKind::Sync, 1 + seed / 2 % 2, Fault::Eio);
        block_on(wal.append(&entries, Lsn(0))).ok();
        disk.clear_faults();
        disk.kill_process();
        let (_, before) = open(&disk);
        disk.crash();
        let (wal, after) = open(&disk);
        assert_eq!(
            (after.last, after.doubt, &after.damage),
            (before.last, None, &None),
            "seed {seed}"
        );
        check_contents(&wal);
        counted += u64::from(before.last == end.point);
    }
    assert!(counted > 0, "the frame was never counted");
}

#[test]
fn a_full_disk_is_an_answer_and_space_given_back_is_used() {
    let disk = SimDisk::immediate(5);
    let mut wal = create(&disk);
    disk.set_capacity(Some(disk.used_bytes() + 8192));
    let mut appended = 0;
    let full = loop {
        let mut end = wal.durable().end();
        let entries = batch(&mut end, 1, &[9000]);
        match block_on(wal.append(&entries, Lsn(0))) {
            Ok(_) => appended += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, WalError::NoSpace(_)), "{full:?}");
    assert_eq!(check_contents(&wal), appended);
    assert!(matches!(
        block_on(wal.prepare_next()),
        Err(WalError::NoSpace(_))
    ));
    disk.set_capacity(None);
    append(&mut wal, &[9000]);
    assert_eq!(check_contents(&wal), appended + 1);
}

/// A log came to the end of its segment in a moment without descriptors: the next one could not be opened, and the copy was finished for its
/// process, although nothing had been written.
#[test]
fn a_segment_that_cannot_be_opened_for_now_is_begun_later() {
    for prepared in [true, false] {
        let disk = SimDisk::immediate(5);
        let mut wal = create(&disk);
        append(&mut wal, &[40_000]);
        if prepared {
            block_on(wal.prepare_next()).expect("room");
        }
        let mut end = wal.durable().end();
        let entries = batch(&mut end, 1, &[40_000]);
        for nth in 1..=2 {
            // The first one of a segment that is not prepared makes it.
            disk.fail_nth(OpKind::Open, nth, Fault::NoDescriptor);
            let refused = block_on(wal.append(&entries, Lsn(0)));
            assert!(matches!(refused, Err(WalError::Prepare(_))), "{refused:?}");
            if prepared {
                break;
            }
        }
        disk.clear_faults();
        block_on(wal.append(&entries, Lsn(0)))
            .map(drop)
            .expect("a descriptor");
        append(&mut wal, &[10]);
        disk.crash();
        let (wal, log) = open(&disk);
        assert_eq!((log.last.lsn, log.doubt, log.damage), (Lsn(3), None, None));
        assert_eq!(check_contents(&wal), 3);
    }
}

#[test]
fn entries_that_do_not_continue_the_log_are_refused_and_nothing_is_written() {
    let disk = SimDisk::immediate(6);
    let mut wal = create(&disk);
    let mut end = append(&mut wal, &[10]);
    let mut gap = end;
    gap.point.lsn = Lsn(5);
    let mut other = end;
    other.crc ^= 1;
    for wrong in [&mut gap, &mut other] {
        let entries = batch(wrong, 1, &[10]);
        assert!(matches!(
            block_on(wal.append(&entries, Lsn(0))),
            Err(WalError::Misfit(_))
        ));
    }
    assert!(matches!(
        block_on(wal.append(&[], Lsn(0))),
        Err(WalError::Misfit(BatchError::Empty))
    ));
    let entries = batch(&mut end, 1, &[10]);
    block_on(wal.append(&entries, Lsn(0)))
        .map(drop)
        .expect("the right one");
}

/// Nothing is appended while it is made: the naps end all the same.
#[test]
fn a_preparation_beside_the_log_is_whole_and_is_used() {
    let disk = SimDisk::immediate(7);
    let mut wal = create(&disk);
    append(&mut wal, &[100]);
    let plan = wal.plan_prepare().expect("none is ready");
    let prepared = block_on(plan.run_beside(&disk, |_| {}));
    wal.adopt(prepared).expect("prepared");
    assert!(wal.plan_prepare().is_none(), "one is ready");
    for _ in 0..5 {
        append(&mut wal, &[20_000]);
    }
    assert!(wal.plan_prepare().is_some(), "it was put to use");
    let (wal, log) = open(&disk);
    assert_eq!((log.last.lsn, log.damage), (Lsn(6), None));
    assert_eq!(check_contents(&wal), 6);
}

#[test]
fn a_late_preparation_is_put_aside() {
    let disk = SimDisk::immediate(7);
    let mut wal = create(&disk);
    let plan = wal.plan_prepare().expect("none is ready");
    assert!(wal.plan_prepare().is_none());
    for _ in 0..10 {
        append(&mut wal, &[20_000]);
    }
    let prepared = block_on(plan.run(&disk));
    wal.adopt(prepared).expect("prepared");
    append(&mut wal, &[1]);
    let (wal, log) = open(&disk);
    assert_eq!((log.last.lsn, log.damage), (Lsn(11), None));
    assert_eq!(check_contents(&wal), 11);
}

#[test]
fn a_bad_last_batch_is_in_doubt_and_a_mark_or_a_batch_behind_it_makes_it_damage() {
    let build = |behind: &str| {
        let disk = SimDisk::immediate(8);
        let mut wal = create(&disk);
        append(&mut wal, &[10]);
        append(&mut wal, &[10, 10]);
        match behind {
            "mark" => block_on(wal.mark(Lsn(0))).expect("mark"),
            "batch" => drop(append(&mut wal, &[10])),
            _ => {}
        }
        disk.rot(&segment(1), 2 * PAGE + 150, 4);
        disk
    };
    let (mut wal, log) = open(&build("nothing"));
    assert_eq!(log.last.lsn, Lsn(1));
    assert_eq!(
        log.doubt,
        Some(Doubt {
            from: Lsn(2),
            to: Some(Lsn(3))
        })
    );
    assert_eq!(log.damage, None);
    append(&mut wal, &[30]);
    assert_eq!((wal.doubt(), check_contents(&wal)), (None, 2));

    let (mut wal, log) = open(&build("mark"));
    let damage = log.damage.expect("the mark proves that it was whole");
    assert_eq!(
        (damage.from, damage.proved_end, log.last.lsn),
        (Lsn(2), None, Lsn(1))
    );
    assert!(matches!(
        block_on(wal.append(&[], Lsn(0))),
        Err(WalError::Damaged { from: Lsn(2) })
    ));
    block_on(wal.cut_damage()).map(drop).expect("cut");
    append(&mut wal, &[30]);
    assert_eq!(check_contents(&wal), 2);

    let (_, log) = open(&build("batch"));
    let damage = log.damage.expect("the next batch proves that it was whole");
    assert_eq!(
        (damage.from, damage.proved_end.map(|point| point.lsn)),
        (Lsn(2), Some(Lsn(4)))
    );
}

#[test]
fn swapped_short_and_headless_segments_are_told() {
    let build = || {
        let disk = SimDisk::immediate(9);
        let mut wal = create(&disk);
        for _ in 0..20 {
            append(&mut wal, &[9000]);
        }
        assert!(wal.index().segment_count() > 3);
        (disk, wal)
    };
    let why = |disk: &SimDisk| open(disk).1.damage.map(|damage| damage.why);
    let (disk, _) = build();
    disk.rot(&segment(2), 20, 1);
    assert_eq!(why(&disk), Some(crate::recovery::DamageKind::SegmentHeader));

    let (disk, _) = build();
    let bytes = disk.peek(&segment(2)).expect("there");
    disk.plant(&segment(2), &bytes[..30_000]);
    assert!(matches!(
        why(&disk),
        Some(crate::recovery::DamageKind::ShortFile | crate::recovery::DamageKind::Frame)
    ));

    let (disk, _) = build();
    block_on(disk.remove(&segment(2))).expect("there");
    assert_eq!(why(&disk), Some(crate::recovery::DamageKind::Chain));

    let (disk, wal) = build();
    drop(wal);
    disk.plant(&segment(2), &disk.peek(&segment(3)).expect("there"));
    let swapped = block_on(Wal::open(disk, Path::new(DIR), config()));
    assert!(matches!(
        swapped,
        Err(OpenError::Foreign {
            what: "segment",
            ..
        })
    ));

    let (disk, _) = build();
    disk.make_unreadable(&segment(2), 8192..8193);
    assert!(why(&disk).is_some());
}

#[test]
fn one_seed_gives_one_history() {
    let run = |seed| {
        let disk = SimDisk::immediate(seed);
        let mut wal = create(&disk);
        append(&mut wal, &[3000]);
        block_on(wal.mark(Lsn(0))).expect("mark");
        disk.fail_nth(OpKind::Sync, 1, Fault::Eio);
        let entries = batch(&mut wal.durable().end(), 1, &[9000, 9000]);
        assert!(block_on(wal.append(&entries, Lsn(0))).is_err());
        disk.crash();
        disk.peek(&segment(1))
    };
    let histories: Vec<_> = (0..20).map(run).collect();
    assert_eq!(histories, (0..20).map(run).collect::<Vec<_>>());
    assert!(
        histories.iter().any(|other| *other != histories[0]),
        "seeds differ"
    );
}

#[test]
fn a_call_dropped_half_way_ends_the_log_for_this_process() {
    let disk = SimDisk::immediate(11);
    let mut wal = create(&disk);
    let mut end = append(&mut wal, &[10]);
    let entries = batch(&mut end, 1, &[10]);
    disk.stall(OpKind::Sync);
    {
        let mut call = std::pin::pin!(wal.append(&entries, Lsn(0)));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(call.as_mut().poll(&mut context).is_pending());
    }
    disk.release();
    assert!(matches!(
        block_on(wal.append(&entries, Lsn(0))),
        Err(WalError::Poisoned { .. })
    ));
}
