//! Sessions: how they begin, and how they end.

use super::*;
use crate::{ATTACHMENT_NAME_BYTES_MAX, Attachment, Refusal};

fn attaching(session: u64, name: String) -> ClientOp {
    ClientOp::Open {
        session: SessionId(session),
        generation: 0,
        create: true,
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
