//! Copies that are behind, and what waits for them.

use super::handovers::with_replica;
use super::*;
use crate::volume::Logged;

const RECORD: usize = 32 << 10;

/// As many records as a copy may be behind.
const RECORDS: u64 = 32;

/// A primary with one session, and a replica that has everything.
fn in_step() -> Rig {
    let mut rig = with_replica();
    let most = RECORDS * RECORD as u64;
    rig.volume.config.lag_bytes_max = most;
    rig.volume.logged = Logged::new(most);
    rig.catch_up();
    rig
}

impl Rig {
    /// The replica acknowledges everything.
    fn catch_up(&mut self) {
        self.ack(2, self.volume.member().last().lsn.0);
    }

    /// Appends record `seq`, and says whether it was taken at once.
    fn put(&mut self, seq: u64) -> bool {
        let text = "x".repeat(RECORD);
        self.ask(1, seq, append_of(seq, &[&text]));
        self.was_taken(seq)
    }

    fn was_taken(&mut self, seq: u64) -> bool {
        match self.reply(1, seq) {
            None => false,
            Some(OpResult::Committed { .. }) => true,
            other => panic!("{other:?}"),
        }
    }

    /// Appends from `seq` on until one waits; its number.
    fn put_until_one_waits(&mut self, mut seq: u64) -> u64 {
        while self.put(seq) {
            seq += 1;
            assert!(seq < 10 * RECORDS, "nobody waits");
        }
        seq
    }
}

#[test]
fn half_of_what_a_copy_far_behind_takes_in_is_ordered_until_it_is_near() {
    let mut rig = in_step();
    let base = rig.volume.member().last().lsn.0;
    let waits = rig.put_until_one_waits(1);
    assert!((RECORDS..=RECORDS + 3).contains(&(waits - 1)), "{waits}");
    for seq in waits + 1..=waits + 100 {
        assert!(!rig.put(seq), "in order, too");
    }
    rig.ack(2, base + 20);
    let taken = (waits..=waits + 100)
        .filter(|seq| rig.was_taken(*seq))
        .count();
    assert!((8..=12).contains(&taken), "{taken} for 20");
    rig.catch_up();
    let taken = (waits..=waits + 100)
        .filter(|seq| rig.was_taken(*seq))
        .count();
    assert!(
        taken as u64 > RECORDS / 2,
        "it is near, and free to fall behind: {taken}"
    );
}

/// A machine that is lost, or a disk that hangs, costs a quorum nothing.
#[test]
fn a_copy_that_does_not_go_on_is_not_waited_for() {
    let mut rig = in_step();
    let base = rig.volume.member().last().lsn.0;
    let waits = rig.put_until_one_waits(1);
    rig.pass(99_000_000);
    assert!(!rig.was_taken(waits));
    let due = rig.volume.lags_due();
    assert!(due <= MonoTime(rig.clock + 2_000_000), "it wakes by itself");
    assert!(rig.volume.next_deadline() <= due);
    rig.pass(2_000_000);
    assert!(rig.was_taken(waits));
    for seq in waits + 1..waits + 3 * RECORDS {
        assert!(rig.put(seq), "{seq}");
    }
    // It comes back. What was ordered meanwhile is not held against it.
    rig.ack(2, base + 10);
    assert!(rig.put(waits + 3 * RECORDS), "a step");
    let next = rig.put_until_one_waits(waits + 3 * RECORDS + 1);
    rig.ack(2, base + 20);
    assert!(rig.was_taken(next), "it goes on");
}

/// What the primary's own log does not hold durably stays in memory, although others make a quorum without it.
#[test]
fn mutations_wait_for_the_primarys_own_disk_when_it_is_far_behind() {
    let mut rig = in_step();
    rig.hold = true;
    let mut seq = 1;
    loop {
        let taken = rig.put(seq);
        rig.catch_up();
        if !taken && !rig.was_taken(seq) {
            break;
        }
        seq += 1;
        assert!(seq < 10 * RECORDS, "nobody waits");
    }
    assert!(
        (2 * RECORDS..=2 * RECORDS + 3).contains(&(seq - 1)),
        "{seq}"
    );
    rig.store(usize::try_from(RECORDS).expect("a few"));
    rig.catch_up();
    assert!(rig.was_taken(seq));
}

/// The order of events: a replica takes in entries of an ended epoch, cuts them, takes in others in their place, and becomes primary. It saw
/// its own disk far behind positions that it held durably, for ever.
#[test]
fn what_was_cut_is_not_behind_anybody() {
    let mut logged = Logged::new(RECORDS * RECORD as u64);
    for lsn in 1..=20 {
        logged.note(RECORD, Lsn(lsn));
    }
    logged.cut(Lsn(10));
    assert_eq!(logged.behind(Lsn(10)), 0);
    let all = 20 * RECORD as u64;
    assert_eq!(logged.reaching_back(all + 1), Lsn(0), "less was logged");
    for lsn in 11..=15 {
        logged.note(RECORD, Lsn(lsn));
        assert_eq!(logged.behind(Lsn(lsn)), 0);
        assert_eq!(logged.behind(Lsn(10)), (lsn - 10) * RECORD as u64);
    }
}

/// Cut right after its start, a copy has logged nothing, and reaches back by nothing: it gave up what members that were behind still
/// needed, and as a new primary it could neither feed them nor, before they had it, let them go.
#[test]
fn a_cut_gives_up_nothing_of_the_log_before_it() {
    let mut logged = Logged::new(1 << 20);
    logged.cut(Lsn(10));
    assert_eq!(logged.reaching_back(1), Lsn(0));
    logged.note(RECORD, Lsn(11));
    assert_eq!(logged.reaching_back(RECORD as u64), Lsn(10));
}
