//! The queue alone.

use mainstay_types::Lsn;
use tokio::sync::oneshot::error::TryRecvError;

use super::*;
use crate::room::Room;

type Results = Vec<oneshot::Receiver<MutationResult>>;

/// `count` appends, taken in and sent.
fn queue(count: u64) -> (Inflight, Results) {
    let room = Room::new(100, 1000);
    let mut inflight = Inflight::new();
    let mut results = Vec::new();
    for seq in 1..=count {
        let (reply, result) = oneshot::channel();
        let mutation = Mutation::Append {
            record: Bytes::from_static(b"r"),
            expected: None,
        };
        inflight.push(seq, mutation, room.try_acquire(1).expect("room"), reply);
        results.push(result);
    }
    assert_eq!(inflight.send_new(Instant::now()).len(), 1);
    (inflight, results)
}

fn at(lsn: u64) -> MutationResult {
    Ok(Committed {
        count: 1,
        lsn: Lsn(lsn),
        timestamp_us: 0,
    })
}

#[test]
fn results_leave_in_order_whatever_the_order_of_replies() {
    let (mut inflight, mut results) = queue(3);
    assert!(inflight.complete(3, at(13)));
    assert!(inflight.complete(2, at(12)));
    assert_eq!(results[1].try_recv(), Err(TryRecvError::Empty));
    assert!(inflight.complete(1, at(11)));
    for (result, lsn) in results.iter_mut().zip(11..) {
        assert_eq!(result.try_recv(), Ok(at(lsn)));
    }
    assert_eq!(inflight.first_unanswered(), 4);
}

#[test]
fn only_what_has_no_result_is_sent_again_under_its_old_number() {
    let (mut inflight, _results) = queue(3);
    inflight.complete(2, at(12));
    let again = inflight.send_all(Instant::now());
    assert_eq!(numbers(&again), [vec![1], vec![3]]);
    assert_eq!(inflight.send_new(Instant::now()), []);
}

/// The numbers in each request, by their tags.
fn numbers(requests: &[pb::ClientRequest]) -> Vec<Vec<u64>> {
    let of = |request: &pb::ClientRequest| match &request.body {
        Some(Body::AppendBatch(batch)) => (0..)
            .zip(&batch.records)
            .map(|(at, _)| request.tag + at * batch.tag_step)
            .map(|tag| seq_of_tag(tag).expect("odd"))
            .collect(),
        _ => vec![seq_of_tag(request.tag).expect("odd")],
    };
    requests.iter().map(of).collect()
}

#[test]
fn records_in_a_row_share_a_request_and_nothing_else_does() {
    let room = Room::new(100, 1 << 20);
    let mut inflight = Inflight::new();
    let append = |bytes: usize, expected| Mutation::Append {
        record: Bytes::from(vec![1; bytes]),
        expected,
    };
    let mutations = [
        append(5, None),
        append(0, None),
        append(5, Some(7)),
        append(BATCH_BYTES, None),
        append(5, None),
        Mutation::TrimLog { first: 2 },
        append(5, None),
    ];
    let mut results = Vec::new();
    for (seq, mutation) in (1..).zip(mutations) {
        let (reply, result) = oneshot::channel();
        let permit = room.try_acquire(1).expect("room");
        inflight.push(seq, mutation, permit, reply);
        results.push(result);
    }
    let sent = inflight.send_new(Instant::now());
    let expected = [vec![1, 2], vec![3], vec![4], vec![5], vec![6], vec![7]];
    assert_eq!(numbers(&sent), expected);
}

#[test]
fn replies_that_nobody_waits_for_change_nothing() {
    let (mut inflight, _results) = queue(1);
    assert!(!inflight.complete(0, at(1)));
    assert!(!inflight.complete(2, at(1)));
    assert!(!inflight.complete(u64::MAX, at(1)));
    assert!(inflight.complete(1, at(1)));
    assert!(!inflight.complete(1, at(2)));
}

#[test]
fn the_end_of_a_session_leaves_what_was_sent_unknown_and_refuses_the_rest() {
    let (mut inflight, mut results) = queue(1);
    let (reply, result) = oneshot::channel();
    let permit = Room::new(1, 1).try_acquire(0).expect("room");
    inflight.push(2, Mutation::TrimLog { first: 1 }, permit, reply);
    results.push(result);
    inflight.end(&Refusal::UnknownSession);
    assert_eq!(
        results[0].try_recv(),
        Ok(Err(Failed::Unknown(Refusal::UnknownSession)))
    );
    assert_eq!(
        results[1].try_recv(),
        Ok(Err(Failed::Refused(Refusal::UnknownSession)))
    );
}

#[test]
fn a_result_whose_caller_left_is_kept_for_outcome() {
    let (mut inflight, results) = queue(1);
    drop(results);
    inflight.complete(1, at(7));
    let (waiter, _result) = oneshot::channel();
    assert!(
        matches!(inflight.outcome(1, waiter), Known::Settled(Outcome::Committed(c)) if c.lsn == Lsn(7)),
        "kept"
    );
}
