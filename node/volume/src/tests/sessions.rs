//! Sessions: how they begin, and how they end.

use super::*;
use crate::{ATTACHMENT_NAME_BYTES_MAX, Attachment, Outcome, Refusal};

fn attaching(session: u64, name: String) -> ClientOp {
    ClientOp::Open {
        session: SessionId(session),
        generation: 0,
        create: true,
        answered: 0,
        attachment: Some(Attachment {
            name,
            takeover: true,
        }),
        token: 0,
    }
}

/// An entry holds 16 MiB: a longer name would end the process, and a long one is carried for ever.
#[test]
fn the_name_of_an_attachment_is_bounded() {
    let mut rig = Rig::block();
    for bytes in [ATTACHMENT_NAME_BYTES_MAX + 1, 17 << 20] {
        let refused = rig.call(1, attaching(5, "a".repeat(bytes)));
        assert!(
            matches!(refused, OpResult::Refused(Refusal::BadRequest(why)) if why.contains("256")),
            "{refused:?}"
        );
    }
    assert_eq!(rig.log.len(), 1, "nothing but the start of the epoch");
    let opened = rig.call(1, attaching(5, "a".repeat(ATTACHMENT_NAME_BYTES_MAX)));
    assert!(matches!(opened, OpResult::Opened { .. }), "{opened:?}");
}

/// A client that leaves the number out would share a session with every other that does, and its trims would pass for the primary's.
#[test]
fn a_session_has_a_number() {
    let mut rig = Rig::primary();
    let refused = rig.open(1, 0);
    assert!(
        matches!(refused, OpResult::Refused(Refusal::BadRequest(_))),
        "{refused:?}"
    );
    let trim = encode_unstamped(EntryKind::TrimLog, SessionId(0), 0, 0, 1, &[0; 8]);
    let trimmed = ClientOp::Mutate {
        seq: 1,
        expected: None,
        entry: trim,
        more: Vec::new(),
    };
    assert_eq!(
        rig.call(1, trimmed),
        OpResult::Refused(Refusal::NoSession),
        "nothing was opened"
    );
    assert_eq!(rig.log.len(), 1);
}

/// Whoever names the wrong volume is told so, and its writers do not notice.
#[test]
fn a_log_is_not_attached() {
    let mut rig = Rig::primary();
    rig.open(1, 5);
    let refused = rig.call(2, attaching(6, "host".to_owned()));
    assert_eq!(refused, OpResult::Refused(Refusal::WrongKind));
    let committed = rig.call(1, append_of(1, &["a"]));
    assert!(
        matches!(committed, OpResult::Committed { lsn: Lsn(3), .. }),
        "{committed:?}"
    );
}

fn opening_as(session: u64, generation: u32, create: bool) -> ClientOp {
    ClientOp::Open {
        session: SessionId(session),
        generation,
        create,
        answered: 0,
        attachment: None,
        token: 0,
    }
}

/// A session that has ordered its last append and its end, and has lost its connection before either is committed.
fn closing() -> Rig {
    let mut rig = Rig::primary();
    rig.open(1, 5);
    rig.hold = true;
    rig.ask(1, 1, append_of(1, &["last"]));
    rig.ask(1, 2, ClientOp::Close);
    rig.event(Event::ConnClosed { conn: 1 });
    rig
}

/// The session's next connection is told that nobody knows how its append ended, and not that it was refused: it is committed.
#[test]
fn a_session_that_ends_is_not_taken_for_one_that_goes_on() {
    let mut rig = closing();
    rig.ask(2, 3, opening_as(5, 2, false));
    rig.store(1);
    assert_eq!(rig.reply(2, 3), None, "the end is not committed yet");
    rig.store(10);
    assert_eq!(
        rig.reply(2, 3),
        Some(OpResult::Refused(Refusal::UnknownSession))
    );
    assert_eq!(rig.records(), [(3, "last".to_owned())]);
}

#[test]
fn a_session_that_is_made_anew_behind_its_end_begins_with_number_one() {
    let mut rig = closing();
    rig.ask(2, 3, opening_as(5, 2, true));
    rig.ask(3, 4, opening_as(5, 3, true));
    rig.event(Event::ConnClosed { conn: 3 });
    rig.hold = false;
    rig.store(10);
    let opened = rig.reply(2, 3);
    assert!(
        matches!(opened, Some(OpResult::Opened { next_seq: 1, .. })),
        "{opened:?}"
    );
    let committed = rig.call(2, append_of(1, &["first"]));
    assert!(
        matches!(committed, OpResult::Committed { .. }),
        "{committed:?}"
    );
    assert_eq!(rig.reply(3, 4), None, "it has gone");
}

#[test]
fn who_waits_for_the_end_of_a_session_is_answered_when_the_role_ends() {
    let mut rig = closing();
    rig.ask(2, 3, opening_as(5, 2, false));
    rig.depose(2);
    assert!(matches!(
        rig.reply(2, 3),
        Some(OpResult::Refused(Refusal::NotPrimary { .. }))
    ));
}

/// Numbers that a client chooses: the greatest ones are no way to end the process, nor to begin again from zero.
#[test]
fn numbers_above_which_there_is_no_other_are_refused() {
    let mut rig = Rig::primary();
    let greatest = rig.call(1, opening_as(5, u32::MAX, true));
    assert!(
        matches!(
            greatest,
            OpResult::Opened {
                generation: u32::MAX,
                ..
            }
        ),
        "{greatest:?}"
    );
    let beyond = rig.call(1, append_of(u64::MAX, &["a"]));
    assert!(
        matches!(beyond, OpResult::Refused(Refusal::BadRequest(_))),
        "{beyond:?}"
    );
    assert!(matches!(
        rig.call(1, append_of(u64::MAX - 1, &["a"])),
        OpResult::Committed { .. }
    ));
    for generation in [0, u32::MAX] {
        assert_eq!(
            rig.call(2, opening_as(5, generation, false)),
            OpResult::Refused(Refusal::Superseded {
                asked: generation,
                present: u32::MAX
            })
        );
    }
}

/// As many other sessions as there is room for: whichever was there before is forgotten.
fn crowd(rig: &mut Rig) {
    for session in 0..10_000 {
        rig.ask(1_000 + session, 1, opening_as(1_000 + session, 1, true));
    }
}

/// A conditional append is refused, and the answer is lost; what its session did is forgotten before it asks again. Nobody can tell a
/// refused number from a committed one then, and nobody may say that it was committed.
#[test]
fn what_is_forgotten_is_not_told_to_be_committed() {
    let mut rig = Rig::primary();
    rig.open(1, 5);
    let mut conditional = append_of(1, &["a"]);
    if let ClientOp::Mutate { expected, .. } = &mut conditional {
        *expected = Some(Lsn(99));
    }
    let refused = rig.call(1, conditional);
    assert!(
        matches!(refused, OpResult::Refused(Refusal::UnexpectedLsn { .. })),
        "{refused:?}"
    );
    rig.call(1, append_of(2, &["b"]));
    crowd(&mut rig);
    let mut again = opening_as(5, 2, true);
    if let ClientOp::Open { answered, .. } = &mut again {
        *answered = 2;
    }
    rig.call(1, again);
    let OpResult::Refused(told) = rig.call(1, append_of(1, &["a"])) else {
        panic!("taken");
    };
    assert_eq!(told, Refusal::ResultForgotten { seq: 1 });
    assert!(
        told.to_string()
            .contains("was settled, committed or refused"),
        "{told}"
    );
}

/// A client comes back to a session that was forgotten, with nothing under way. Nobody may be told that what it had committed never was:
/// it would be sent again under another number.
#[test]
fn a_session_that_is_made_anew_behind_its_answers_says_that_it_forgot_them() {
    let mut rig = Rig::primary();
    rig.open(1, 5);
    rig.call(1, append_of(1, &["a"]));
    rig.call(1, append_of(2, &["b"]));
    crowd(&mut rig);
    let mut again = opening_as(5, 2, true);
    if let ClientOp::Open { answered, .. } = &mut again {
        *answered = 2;
    }
    let opened = rig.call(1, again);
    assert!(
        matches!(opened, OpResult::Opened { next_seq: 3, .. }),
        "{opened:?}"
    );
    let forgotten = OpResult::Outcome(Outcome::Forgotten);
    assert_eq!(rig.call(1, ClientOp::Outcome { seq: 2 }), forgotten);
    let never = OpResult::Outcome(Outcome::Never);
    assert_eq!(rig.call(1, ClientOp::Outcome { seq: 3 }), never);
    assert_eq!(
        rig.call(1, append_of(2, &["b"])),
        OpResult::Refused(Refusal::ResultForgotten { seq: 2 })
    );
    let next = rig.call(1, append_of(3, &["c"]));
    assert!(matches!(next, OpResult::Committed { .. }), "{next:?}");
    assert_eq!(rig.records().len(), 3);
}

/// The order of events: a session has an append committed and not heard of; its client opens it again, and it is known; before that is
/// committed, others have it forgotten; then its client sends the append again.
#[test]
fn a_session_that_is_forgotten_while_it_is_opened_is_not_made_anew() {
    let mut rig = Rig::primary();
    rig.open(1, 5);
    rig.call(1, append_of(1, &["a"]));
    rig.hold = true;
    crowd(&mut rig);
    rig.ask(2, 7, opening_as(5, 2, false));
    rig.hold = false;
    rig.store(usize::MAX);
    assert_eq!(
        rig.reply(2, 7),
        Some(OpResult::Refused(Refusal::UnknownSession))
    );
    assert_eq!(
        rig.call(2, append_of(1, &["a"])),
        OpResult::Refused(Refusal::NoSession)
    );
    assert_eq!(rig.records().len(), 1);
    let anew = rig.call(2, opening_as(5, 3, true));
    assert!(matches!(anew, OpResult::Opened { .. }), "{anew:?}");
}
