//! Memory that changes hold until a checkpoint: when one is due, and what waits for it.

use mainstay_storage::format::{FLAG_ALLOCATED, encode_range, set_flags};

use super::handovers::with_replica;
use super::*;
use crate::{Outcome, Refusal};

const SHARE: u64 = 1 << 20;

/// A primary with one session, whose checkpoints take their time.
fn slow_disk() -> Rig {
    let mut rig = Rig::primary();
    rig.volume.set_checkpoint_bytes(SHARE);
    rig.slow_checkpoints = true;
    rig.checkpoint = None;
    assert!(matches!(rig.open(1, 5), OpResult::Opened { .. }));
    rig
}

/// The same with a checkpoint under way, and as much memory held again.
fn full() -> Rig {
    let mut rig = slow_disk();
    rig.hold_memory(SHARE);
    assert!(rig.checkpoint.is_some());
    rig.hold_memory(2 * SHARE);
    rig
}

impl Rig {
    fn hold_memory(&mut self, bytes: u64) {
        self.volume.set_held(bytes, self.volume.applied());
        self.event(Event::Tick);
    }

    /// `cause` begins a checkpoint, which fails.
    fn begin_and_fail(&mut self, cause: Event, mended: bool) {
        self.event(cause);
        assert!(self.checkpoint.take().is_some(), "begun");
        self.event(Event::CheckpointFailed { mended });
    }

    /// The checkpoint that was asked for is done.
    fn checkpointed(&mut self) {
        let (at, _) = self.checkpoint.take().expect("one is under way");
        self.volume.set_held(0, self.volume.applied());
        self.event(Event::Checkpointed { at });
    }
}

#[test]
fn nobody_waits_while_the_checkpoint_keeps_up() {
    let mut rig = slow_disk();
    rig.hold_memory(SHARE);
    rig.hold_memory(SHARE + SHARE / 2 - 1);
    assert!(matches!(
        rig.call(1, append_of(1, &["a"])),
        OpResult::Committed { .. }
    ));
    rig.hold_memory(SHARE + SHARE / 2);
    rig.ask(1, 1, append_of(2, &["b"]));
    assert_eq!(rig.reply(1, 1), None);
    rig.hold_memory(SHARE);
    assert!(rig.reply(1, 1).is_some(), "as soon as it has caught up");
}

#[test]
fn much_memory_asks_for_a_checkpoint_however_short_the_log_is() {
    let mut rig = slow_disk();
    rig.hold_memory(SHARE - 1);
    assert_eq!(rig.checkpoint, None);
    rig.hold_memory(SHARE);
    assert!(rig.checkpoint.is_some());
}

/// A full disk refuses each checkpoint: to ask for the next one at once would keep it busy for nothing.
#[test]
fn a_checkpoint_that_failed_is_not_tried_again_before_more_has_come() {
    let mut rig = slow_disk();
    rig.hold_memory(SHARE);
    rig.checkpoint = None;
    rig.event(Event::CheckpointFailed { mended: false });
    rig.hold_memory(SHARE + SHARE / 4 - 1);
    assert_eq!(rig.checkpoint, None);
    rig.hold_memory(SHARE + SHARE / 4);
    rig.checkpointed();
    rig.hold_memory(SHARE - 1);
    assert_eq!(rig.checkpoint, None);
    assert!(matches!(
        rig.call(1, append_of(1, &["a"])),
        OpResult::Committed { .. }
    ));
    rig.hold_memory(SHARE);
    assert!(rig.checkpoint.is_some(), "as before");
}

/// The order of events: a block is repaired on a volume that nobody writes to, and the checkpoint that is to put it into the file finds a
/// full disk. Nothing else would ever ask for one, and repairs end once memory is full of such blocks.
#[test]
fn a_checkpoint_for_repairs_that_failed_is_tried_again_after_a_while() {
    let mut rig = slow_disk();
    rig.begin_and_fail(Event::Repaired, false);
    assert_eq!(rig.checkpoint, None, "not at once");
    rig.event(Event::Repaired);
    rig.pass(5_000_000_000);
    rig.event(Event::Tick);
    assert_eq!(
        rig.checkpoint, None,
        "nor as often as something is repaired"
    );
    rig.pass(5_000_000_000);
    rig.begin_and_fail(Event::Tick, false);
    rig.pass(10_000_000_000);
    rig.event(Event::Tick);
    rig.checkpointed();
    rig.pass(10_000_000_000);
    rig.event(Event::Tick);
    assert_eq!(rig.checkpoint, None, "they are in the file");
}

#[test]
fn a_checkpoint_whose_block_was_repaired_is_tried_again_at_once() {
    let mut rig = slow_disk();
    rig.begin_and_fail(Event::Repaired, true);
    rig.checkpointed();
    rig.event(Event::Tick);
    assert_eq!(rig.checkpoint, None);
}

/// What is repaired beside a checkpoint is not in it.
#[test]
fn a_repair_beside_a_checkpoint_asks_for_the_next_one() {
    let mut rig = slow_disk();
    rig.event(Event::Repaired);
    rig.event(Event::Repaired);
    rig.checkpointed();
    assert!(rig.checkpoint.is_some());
}

/// The order of events that could make one operation both undone and done: it waits, its client asks what came of it, on this
/// connection and, having given it up, on a new one, and only then there is room.
#[test]
fn what_waits_for_memory_keeps_its_place_before_whoever_asks_about_it() {
    let mut rig = full();
    rig.ask(1, 1, append_of(1, &["a"]));
    rig.ask(1, 2, ClientOp::Outcome { seq: 1 });
    rig.ask(2, 3, opening(5));
    rig.ask(1, 4, append_of(2, &["late"]));
    assert_eq!(rig.records(), [], "but reads are answered");
    for (conn, token) in [(1, 1), (1, 2), (2, 3), (1, 4)] {
        assert_eq!(rig.reply(conn, token), None);
    }
    rig.checkpointed();
    let committed = |op: Option<OpResult>| matches!(op, Some(OpResult::Committed { .. }));
    assert!(committed(rig.reply(1, 1)));
    assert!(
        !matches!(
            rig.reply(1, 2),
            None | Some(OpResult::Outcome(Outcome::Never))
        ),
        "it is on its way at least"
    );
    assert!(matches!(
        rig.reply(2, 3),
        Some(OpResult::Opened { next_seq: 2, .. })
    ));
    assert!(matches!(
        rig.reply(1, 4),
        Some(OpResult::Refused(Refusal::Superseded { .. }))
    ));
    rig.ask(2, 5, append_of(2, &["b"]));
    assert!(committed(rig.reply(2, 5)));
    let shown: Vec<_> = rig.records().into_iter().map(|(_, text)| text).collect();
    assert_eq!(shown, ["a", "b"]);
}

#[test]
fn what_waits_for_memory_goes_with_its_connection_and_with_the_role() {
    let mut rig = full();
    rig.ask(1, 1, append_of(1, &["a"]));
    rig.event(Event::ConnClosed { conn: 1 });
    rig.ask(2, 2, opening(6));
    assert_eq!(rig.reply(2, 2), None);
    rig.depose(2);
    assert!(matches!(
        rig.reply(2, 2),
        Some(OpResult::Refused(Refusal::NotPrimary { .. }))
    ));
    rig.checkpointed();
    assert_eq!(rig.records(), []);
    assert_eq!((rig.reply(1, 1), rig.reply(2, 2)), (None, None));
}

/// A switchover begins while an append waits for memory, another one and a question about the first come behind it, and there is
/// memory again before the switchover is called off.
#[test]
fn what_waits_for_memory_keeps_its_place_through_a_switchover() {
    let mut rig = with_replica();
    rig.volume.set_checkpoint_bytes(SHARE);
    rig.slow_checkpoints = true;
    rig.open(2, 6); // There is something to write down.
    rig.hold_memory(SHARE);
    rig.hold_memory(2 * SHARE);
    assert!(rig.volume.memory_is_full());
    rig.ask(1, 1, append_of(1, &["a"]));
    rig.hand_over();
    rig.ask(1, 2, ClientOp::Outcome { seq: 1 });
    rig.ask(1, 3, append_of(2, &["b"]));
    rig.hold_memory(0);
    rig.call_off();
    let first = rig.reply(1, 1);
    assert!(
        matches!(first, Some(OpResult::Committed { .. })),
        "{first:?}"
    );
    let never = OpResult::Outcome(Outcome::Never);
    let outcome = rig.reply(1, 2);
    assert!(outcome.is_some_and(|outcome| outcome != never), "it is in");
    let second = rig.reply(1, 3);
    assert!(
        matches!(second, Some(OpResult::Committed { .. })),
        "{second:?}"
    );
    let texts = rig.records().into_iter().map(|(_, text)| text);
    assert_eq!(texts.collect::<Vec<_>>(), ["a", "b"]);
}

/// A replica of node 2 with a checkpoint under way and as much memory held again; and what its primary sends next.
fn full_replica() -> (Rig, EntryRef) {
    let mut rig = Rig::new(1);
    rig.volume.set_checkpoint_bytes(SHARE);
    rig.slow_checkpoints = true;
    let first = epoch_start(1, LogEnd::ZERO);
    let second = epoch_start(1, first.header.end());
    rig.append(2, std::slice::from_ref(&first), 1);
    rig.hold_memory(SHARE);
    assert!(rig.checkpoint.is_some());
    rig.hold_memory(2 * SHARE);
    assert_eq!(rig.volume.member().durable(), Lsn(1));
    (rig, second)
}

#[test]
fn a_replica_whose_checkpoint_cannot_keep_up_is_one_with_a_slow_disk() {
    let (mut rig, second) = full_replica();
    rig.append(2, &[second], 1);
    assert_eq!(rig.volume.member().last().lsn, Lsn(2), "taken in");
    assert_eq!((rig.volume.member().durable(), rig.log.len()), (Lsn(1), 1));
    rig.checkpointed();
    assert_eq!((rig.volume.member().durable(), rig.log.len()), (Lsn(2), 2));
}

/// A promotion needs this copy's promise, and what was taken in before it stays before it.
#[test]
fn a_promise_waits_for_no_memory() {
    let (mut rig, second) = full_replica();
    rig.append(2, &[second], 1);
    rig.message(99, MemberMessage::Seal { epoch: Epoch(2) });
    assert_eq!((rig.volume.member().durable(), rig.log.len()), (Lsn(2), 2));
    assert_eq!(rig.volume.member().sealed(), Epoch(2));
}

/// Zeroes that keep their space, a quarter of a share each.
fn kept_zeroes(seq: u64) -> ClientOp {
    let len = encode_range(SHARE / 4);
    let mut entry = encode_unstamped(EntryKind::Zeroes, SessionId(0), 0, 0, 0, &len);
    set_flags(&mut entry, FLAG_ALLOCATED);
    ClientOp::Mutate {
        seq,
        expected: None,
        entry,
        more: Vec::new(),
    }
}

/// The order of events: a client sends thousands of ranges at once, an entry of a hundred bytes each. All are ordered, committed and
/// answered before the first one is applied, and only then it shows what they hold.
#[test]
fn ranges_that_are_ordered_and_not_applied_yet_count_as_held() {
    let mut rig = Rig::block();
    rig.volume.set_checkpoint_bytes(SHARE);
    rig.slow_checkpoints = true;
    rig.attach();
    rig.checkpoint = None;
    rig.volume.set_held(0, rig.volume.applied());
    for seq in 1..=6 {
        let done = rig.call(1, kept_zeroes(seq));
        assert!(matches!(done, OpResult::Committed { .. }), "{done:?}");
    }
    rig.ask(1, 7, kept_zeroes(7));
    assert_eq!(rig.reply(1, 7), None, "as much as is ever to be held");
    rig.hold_memory(SHARE);
    assert!(rig.reply(1, 7).is_some(), "it is known what they hold");

    rig.ask(1, 8, kept_zeroes(8));
    rig.ask(1, 9, kept_zeroes(9));
    assert_eq!(rig.reply(1, 9), None);
    rig.depose(2);
    let refused = rig.reply(1, 9);
    assert!(matches!(refused, Some(OpResult::Refused(_))), "{refused:?}");
    assert!(!rig.volume.memory_is_full(), "another primary's business");
}
