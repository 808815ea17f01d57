//! Reads of a log: bounds, both directions, and the search by time.

use super::{Rig, append_of, epoch_start};
use crate::volume::Read;
use crate::{ClientOp, Direction, Event, OpResult, PageLimits, Refusal};

const CONN: u64 = 1;

/// Records of two, one and three at LSNs 3, 4; 5; 7 to 9 (a batch), with timestamps 100, 100, 200, 300; 6 is a session.
fn log() -> Rig {
    let mut rig = Rig::primary();
    rig.open(CONN, 5);
    rig.wall_ns = 100;
    rig.call(CONN, append_of(1, &["a"]));
    rig.call(CONN, append_of(2, &["b"]));
    rig.wall_ns = 200;
    rig.call(CONN, append_of(3, &["c"]));
    rig.open(2, 6);
    rig.wall_ns = 300;
    rig.call(CONN, append_of(4, &["d", "e", "f"]));
    rig
}

fn limits(records_max: usize) -> PageLimits {
    PageLimits {
        bytes_max: usize::MAX,
        records_max,
    }
}

fn texts(records: &[(u64, String)]) -> Vec<(u64, &str)> {
    records
        .iter()
        .map(|(lsn, text)| (*lsn, &text[..]))
        .collect()
}

#[test]
fn no_more_records_are_given_than_were_asked_for() {
    let mut rig = log();
    let page = rig.read_page(1, Direction::Forwards, limits(3));
    assert_eq!(texts(&page.records), [(3, "a"), (4, "b"), (5, "c")]);
    // Bookkeeping behind the last record is looked at before the bound is.
    assert_eq!((page.next, page.end), (6, false));
    let page = rig.read_page(page.next, Direction::Forwards, limits(3));
    assert_eq!(texts(&page.records), [(7, "d"), (8, "e"), (9, "f")]);
    assert_eq!((page.next, page.end), (10, true));
}

/// The oldest of twelve long records are on the disk alone, the others in memory.
#[test]
fn a_page_goes_on_from_the_disk_into_memory() {
    let mut rig = Rig::primary();
    rig.open(CONN, 5);
    let long = "x".repeat(900 << 10);
    for number in 1..=12 {
        rig.call(CONN, append_of(number, &[&long]));
    }
    let page = rig.read(1, usize::MAX);
    assert_eq!(page.records.len(), 12);
    assert_eq!((page.next, page.end), (15, true));
    let some = rig.read_page(1, Direction::Forwards, limits(11));
    assert_eq!((some.records.len(), some.end), (11, false));
    let few = rig.read(1, 2 << 20);
    assert_eq!((few.records.len(), few.end), (2, false));
}

/// Pages backwards, of any size, give all records once, the newest first.
#[test]
fn backwards_pages_meet_at_every_size() {
    for records_max in 1..8 {
        for bytes_max in [1, 80, 200, usize::MAX] {
            let mut rig = log();
            let limits = PageLimits {
                bytes_max,
                records_max,
            };
            let (mut found, mut before) = (Vec::new(), u64::MAX);
            for _ in 0..20 {
                let page = rig.read_page(before, Direction::Backwards, limits);
                assert!(page.records.len() <= records_max);
                assert!(page.next < before, "headway");
                before = page.next;
                found.extend(page.records);
                if page.end {
                    break;
                }
            }
            let all = [(9, "f"), (8, "e"), (7, "d"), (5, "c"), (4, "b"), (3, "a")];
            assert_eq!(
                texts(&found),
                all,
                "{records_max} records, {bytes_max} bytes"
            );
        }
    }
}

#[test]
fn backwards_from_a_position_gives_what_lies_below_it() {
    let mut rig = log();
    let page = rig.read_page(9, Direction::Backwards, limits(2));
    assert_eq!(texts(&page.records), [(8, "e"), (7, "d")]);
    let page = rig.read_page(1, Direction::Backwards, limits(2));
    assert_eq!((page.records.len(), page.end), (0, true));
}

#[test]
fn nothing_of_a_batch_is_read_backwards_before_all_of_it_is_committed() {
    let log = log().log;
    let mut rig = Rig::new(2);
    rig.append(1, &log, 8);
    let page = rig.read_page(100, Direction::Backwards, limits(2));
    assert_eq!(texts(&page.records), [(5, "c"), (4, "b")]);
}

#[test]
fn a_time_is_found_at_its_first_record() {
    let mut rig = log();
    let mut find = |at_ns| {
        rig.call(
            9,
            ClientOp::Find {
                at_ns,
                stale_ok: true,
            },
        )
    };
    for (at, expected) in [
        (0, Some((3, 100))),
        (100, Some((3, 100))),
        (101, Some((5, 200))),
        (200, Some((5, 200))),
        (201, Some((7, 300))),
        (300, Some((7, 300))),
        (301, None),
    ] {
        let expected = expected.map(|(lsn, stamp)| (mainstay_types::Lsn(lsn), stamp));
        assert_eq!(find(at), OpResult::Found(expected), "at {at}");
    }
}

/// What is left of a batch that was cut short is found by nobody, whatever its timestamps.
#[test]
fn a_time_is_not_found_in_what_is_left_of_a_batch() {
    let log = log().log;
    let mut rig = Rig::new(2);
    rig.append(1, &log[..8], 8);
    rig.promote(2);
    let find = |at_ns| ClientOp::Find {
        at_ns,
        stale_ok: true,
    };
    assert_eq!(rig.call(9, find(250)), OpResult::Found(None));
    rig.open(CONN, 5);
    rig.wall_ns = 150; // The clock of the new primary is behind.
    rig.call(CONN, append_of(4, &["d"]));
    let found = rig.call(9, find(250));
    assert_eq!(found, OpResult::Found(Some((mainstay_types::Lsn(11), 300))));
}

/// The order of events: a primary of before has records at 4 and 5 that nobody else has, and starts again with its checkpoint at 3; the next
/// primary sends what was committed at 4 and 5 instead; the disk stands still before the cut. A reader that begins below what is in
/// memory is read from the disk.
#[test]
fn what_a_cut_is_to_take_away_is_never_shown() {
    let mut before = Rig::primary();
    before.open(CONN, 5);
    for (seq, text) in [(1, "a"), (2, "lost"), (3, "lost too")] {
        before.call(CONN, append_of(seq, &[text]));
    }
    let mut checkpoint = Rig::new(1);
    checkpoint.append(2, &before.log[..3], 3);
    let (end, blob) = checkpoint.checkpoint.expect("one entry is enough for one");

    let mut rig = Rig::opened(1, end, &blob, &before.log);
    rig.stalled = true;
    let first = epoch_start(2, end);
    let second = epoch_start(2, first.header.end());
    rig.append(2, &[first, second], 5);
    assert_eq!(rig.volume.visible().0, 5);
    let page = rig.read_page(1, Direction::Forwards, limits(9));
    assert_eq!(texts(&page.records), [(3, "a")]);
    assert_eq!((page.next, page.end), (6, true), "the rest is in memory");
}

/// Without a lease a read waits until other copies have answered.
#[test]
fn a_read_that_waits_goes_with_its_connection() {
    let mut rig = Rig::primary();
    for conn in [CONN, 2] {
        let read = Read::Position { conn, token: 9 };
        rig.volume.reads.insert(1_000 + conn, read);
    }
    rig.event(Event::ConnClosed { conn: 2 });
    rig.depose(2);
    assert!(matches!(
        rig.reply(CONN, 9),
        Some(OpResult::Refused(Refusal::NotPrimary { .. }))
    ));
    assert_eq!(rig.reply(2, 9), None);
}
