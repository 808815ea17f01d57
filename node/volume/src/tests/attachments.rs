//! Takeovers and superseded connections: nobody is told of an entry that a failover may still take away.

use mainstay_storage::EntryKind;
use mainstay_storage::format::encode_unstamped;
use mainstay_types::SessionId;

use super::{Rig, append_of, opening};
use crate::{Attachment, ClientOp, OpResult, Refusal};

const HOLDER: u64 = 1;
const OTHER: u64 = 2;

fn attaching(session: u64, name: &str, takeover: bool) -> ClientOp {
    ClientOp::Open {
        session: SessionId(session),
        generation: 0,
        create: true,
        answered: 0,
        attachment: Some(Attachment {
            name: name.to_owned(),
            takeover,
        }),
        token: 0,
    }
}

fn write(seq: u64) -> ClientOp {
    ClientOp::Mutate {
        seq,
        expected: None,
        entry: encode_unstamped(EntryKind::Write, SessionId(0), 0, 0, 0, &[1; 512]),
        more: Vec::new(),
    }
}

fn attached(by: &str) -> Option<OpResult> {
    let by = by.to_owned();
    Some(OpResult::Refused(Refusal::Attached { by }))
}

/// A holder, and a takeover that is in the log and not committed: the disk is slow. The holder writes, asks what became of that, and closes;
/// a third one asks for the volume.
fn taken_over() -> Rig {
    let mut rig = Rig::block();
    rig.attach();
    rig.hold = true;
    rig.ask(OTHER, 1, attaching(6, "other", true));
    rig.ask(HOLDER, 1, write(1));
    rig.ask(HOLDER, 2, ClientOp::Outcome { seq: 1 });
    rig.ask(HOLDER, 3, ClientOp::Close);
    rig.ask(3, 1, attaching(7, "third", false));
    rig
}

const TOLD: [(u64, u64); 4] = [(HOLDER, 1), (HOLDER, 2), (HOLDER, 3), (3, 1)];

#[test]
fn a_takeover_is_told_once_it_is_committed() {
    let mut rig = taken_over();
    for (conn, token) in TOLD {
        assert_eq!(rig.reply(conn, token), None, "{conn}/{token}");
    }
    rig.store(2);
    assert!(matches!(rig.reply(OTHER, 1), Some(OpResult::Opened { .. })));
    for (conn, token) in TOLD {
        assert_eq!(rig.reply(conn, token), attached("other"), "{conn}/{token}");
    }
}

/// The primary dies with the takeover: it never was. The holder goes on at the next one.
#[test]
fn a_takeover_that_a_failover_takes_away_ends_nobody() {
    let mut rig = taken_over();
    rig.depose(2);
    for (conn, token) in TOLD {
        let told = rig.reply(conn, token);
        assert_eq!(told, Some(OpResult::Interrupted), "{conn}/{token}");
    }
}

/// Somebody settles an append of a session whose writer lives; the primary dies with the entry that fences the writer.
#[test]
fn an_opening_that_a_failover_takes_away_supersedes_nobody() {
    let superseded = || {
        let mut rig = Rig::primary();
        rig.open(HOLDER, 5);
        rig.hold = true;
        rig.ask(OTHER, 1, opening(5));
        rig.ask(HOLDER, 1, append_of(1, &["a"]));
        rig
    };
    let mut rig = superseded();
    assert_eq!(rig.reply(HOLDER, 1), None);
    rig.depose(2);
    assert_eq!(rig.reply(HOLDER, 1), Some(OpResult::Interrupted));
    let mut rig = superseded();
    rig.store(1);
    let told = rig.reply(HOLDER, 1);
    assert!(
        matches!(
            told,
            Some(OpResult::Refused(Refusal::Superseded { present: 2, .. }))
        ),
        "{told:?}"
    );
}
