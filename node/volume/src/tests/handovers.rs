//! Planned switchovers, and what comes while one is under way.

use super::*;
use crate::{Outcome, Refusal};

/// A primary with the session 5 on connection 1, and a replica that holds nothing, so that a switchover to it is called off.
pub(super) fn with_replica() -> Rig {
    let mut rig = Rig::new(1);
    rig.promote_with(1, &[2]);
    assert!(matches!(rig.open(1, 5), OpResult::Opened { .. }));
    rig
}

impl Rig {
    pub(super) fn hand_over(&mut self) {
        let to = Some(NodeId(2));
        self.event(Event::Handover { to });
        assert!(!self.volume.member().accepts(), "drains");
    }

    /// The replica has not caught up in time.
    pub(super) fn call_off(&mut self) {
        self.pass(10_000_000_000);
        assert!(self.volume.member().accepts(), "goes on");
    }
}

#[test]
fn what_comes_while_a_switchover_is_under_way_is_taken_when_it_is_called_off() {
    let mut rig = with_replica();
    rig.hand_over();
    rig.ask(1, 1, append_of(1, &["a"]));
    rig.ask(1, 2, ClientOp::Outcome { seq: 1 });
    assert_eq!((rig.reply(1, 1), rig.reply(1, 2)), (None, None));
    rig.call_off();
    assert!(matches!(rig.reply(1, 1), Some(OpResult::Committed { .. })));
    let outcome = rig.reply(1, 2);
    let never = OpResult::Outcome(Outcome::Never);
    assert!(outcome.is_some_and(|outcome| outcome != never));
}

/// Nothing is refused for good because a switchover takes its time: the client sends it again, on another connection. What it sends
/// on this one meanwhile must not get in front.
#[test]
fn what_is_too_much_while_a_switchover_is_under_way_comes_again() {
    let mut rig = with_replica();
    rig.volume.config.parked_max = 2;
    rig.hand_over();
    for seq in 1..=3 {
        rig.ask(1, seq, append_of(seq, &["early"]));
    }
    let away = rig.reply(1, 3);
    assert!(
        matches!(
            away,
            Some(OpResult::Refused(Refusal::NotPrimary { primary: None, .. }))
        ),
        "{away:?}"
    );
    rig.call_off();
    rig.ask(1, 4, append_of(4, &["early"]));
    for seq in [1, 2, 4] {
        assert_eq!(
            rig.reply(1, seq),
            Some(OpResult::Refused(Refusal::NoSession)),
            "number {seq}: its client opens another connection"
        );
    }
    rig.event(Event::ConnClosed { conn: 1 });
    assert!(matches!(
        rig.open(2, 5),
        OpResult::Opened { next_seq: 1, .. }
    ));
    for seq in 1..=4 {
        let committed = rig.call(2, append_of(seq, &[&seq.to_string()]));
        assert!(
            matches!(committed, OpResult::Committed { .. }),
            "{committed:?}"
        );
    }
    let texts = rig.records().into_iter().map(|(_, text)| text);
    assert_eq!(texts.collect::<Vec<_>>(), ["1", "2", "3", "4"]);
}
