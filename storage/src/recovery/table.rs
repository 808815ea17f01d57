//! The decision table of recovery: what one position of a segment means.
//!
//! A *position* is where the next frame should begin. Its three inputs:
//!
//! - **header**: what its first 64 bytes are;
//! - **body**: for an expected header, the frame's entries and padding; otherwise the rest of the segment;
//! - **behind**: whether a later write is found intact, a frame or a mark behind it or a segment that continues it.
//!
//! ```text
//!  header       body         behind: nothing     behind: evidence
//!  -----------  -----------  ------------------  ------------------
//!  zero         zero         clean end           damage (a frame that was written is gone)
//!  zero         bad          in doubt            damage
//!  zero         unreadable   in doubt            damage
//!  expected     intact       accept              accept
//!  expected     bad          in doubt            damage
//!  expected     unreadable   in doubt            damage (medium)
//!  misplaced    any          damage              damage
//!  garbage      any          in doubt            damage
//!  unreadable   any          in doubt            damage (medium)
//! ```
//!
//! A misplaced frame is intact but names another segment, lineage or LSN. No interrupted write leaves one, since
//! files are never used twice: it is a misdirected write or a swapped file.

use super::DamageKind;

/// What the first bytes of a position are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderState {
    /// Zeroes, as the segment was made.
    Zero,
    /// An intact header of the frame that belongs here.
    Expected,
    /// An intact header of a frame that belongs elsewhere.
    Misplaced,
    /// Anything else.
    Garbage,
    /// The medium does not give it back.
    Unreadable,
}

/// What follows the header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BodyState {
    /// Verified, or zeroes where zeroes belong.
    Intact,
    /// Something else.
    Bad,
    /// The medium does not give it back.
    Unreadable,
}

/// Whether later writes are there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Behind {
    /// None.
    Nothing,
    /// At least one.
    Evidence,
}

/// What a position means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The frame counts; go on behind it.
    Accept,
    /// The log ends before this position.
    CleanEnd,
    /// The log's usable end is before this position, and a batch here was perhaps acknowledged.
    InDoubt,
    /// Entries that were durable are lost here.
    Damage(DamageKind),
}

const FRAME: Verdict = Verdict::Damage(DamageKind::Frame);
const MEDIUM: Verdict = Verdict::Damage(DamageKind::Unreadable);
const MISPLACED: Verdict = Verdict::Damage(DamageKind::Misplaced);

/// Every input once: header, body, verdict with nothing behind, verdict with evidence behind.
pub const TABLE: [(HeaderState, BodyState, Verdict, Verdict); 15] = [
    (
        HeaderState::Zero,
        BodyState::Intact,
        Verdict::CleanEnd,
        FRAME,
    ),
    (HeaderState::Zero, BodyState::Bad, Verdict::InDoubt, FRAME),
    (
        HeaderState::Zero,
        BodyState::Unreadable,
        Verdict::InDoubt,
        FRAME,
    ),
    (
        HeaderState::Expected,
        BodyState::Intact,
        Verdict::Accept,
        Verdict::Accept,
    ),
    (
        HeaderState::Expected,
        BodyState::Bad,
        Verdict::InDoubt,
        FRAME,
    ),
    (
        HeaderState::Expected,
        BodyState::Unreadable,
        Verdict::InDoubt,
        MEDIUM,
    ),
    (
        HeaderState::Misplaced,
        BodyState::Intact,
        MISPLACED,
        MISPLACED,
    ),
    (HeaderState::Misplaced, BodyState::Bad, MISPLACED, MISPLACED),
    (
        HeaderState::Misplaced,
        BodyState::Unreadable,
        MISPLACED,
        MISPLACED,
    ),
    (
        HeaderState::Garbage,
        BodyState::Intact,
        Verdict::InDoubt,
        FRAME,
    ),
    (
        HeaderState::Garbage,
        BodyState::Bad,
        Verdict::InDoubt,
        FRAME,
    ),
    (
        HeaderState::Garbage,
        BodyState::Unreadable,
        Verdict::InDoubt,
        FRAME,
    ),
    (
        HeaderState::Unreadable,
        BodyState::Intact,
        Verdict::InDoubt,
        MEDIUM,
    ),
    (
        HeaderState::Unreadable,
        BodyState::Bad,
        Verdict::InDoubt,
        MEDIUM,
    ),
    (
        HeaderState::Unreadable,
        BodyState::Unreadable,
        Verdict::InDoubt,
        MEDIUM,
    ),
];

/// Looks a position up.
#[must_use]
pub fn decide(header: HeaderState, body: BodyState, behind: Behind) -> Verdict {
    let row = TABLE.iter().find(|row| row.0 == header && row.1 == body);
    let row = row.expect("the table holds every pair, as its test shows");
    match behind {
        Behind::Nothing => row.2,
        Behind::Evidence => row.3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADERS: [HeaderState; 5] = [
        HeaderState::Zero,
        HeaderState::Expected,
        HeaderState::Misplaced,
        HeaderState::Garbage,
        HeaderState::Unreadable,
    ];
    const BODIES: [BodyState; 3] = [BodyState::Intact, BodyState::Bad, BodyState::Unreadable];

    #[test]
    fn every_input_has_exactly_one_row_and_none_shortens_the_log_in_silence() {
        for header in HEADERS {
            for body in BODIES {
                assert_eq!(
                    TABLE
                        .iter()
                        .filter(|row| (row.0, row.1) == (header, body))
                        .count(),
                    1
                );
                for behind in [Behind::Nothing, Behind::Evidence] {
                    let verdict = decide(header, body, behind);
                    let intact = (header, body) == (HeaderState::Expected, BodyState::Intact);
                    assert_eq!(
                        verdict == Verdict::Accept,
                        intact,
                        "{header:?} {body:?} {behind:?}"
                    );
                    let empty = (header, body, behind)
                        == (HeaderState::Zero, BodyState::Intact, Behind::Nothing);
                    assert_eq!(
                        verdict == Verdict::CleanEnd,
                        empty,
                        "{header:?} {body:?} {behind:?}"
                    );
                    if behind == Behind::Evidence && !intact {
                        assert!(matches!(verdict, Verdict::Damage(_)), "{header:?} {body:?}");
                    }
                }
            }
        }
    }
}
