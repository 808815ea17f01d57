use std::pin::Pin;

use bytes::Bytes;
use futures_util::FutureExt;
use mainstay_types::Lsn;
use tokio::sync::Notify;

use super::super::change::RANGE_BYTES_MAX;
use super::*;

const PARK_TIMEOUT: Duration = Duration::from_secs(60);

/// A volume whose room and whose commits are in the test's hand.
#[derive(Clone, Default)]
struct Volume(Arc<State>);

#[derive(Default)]
struct State {
    room: Mutex<usize>,
    room_came: Notify,
    /// Offsets of what was put in line.
    put: Mutex<Vec<u64>>,
    commits: Mutex<VecDeque<oneshot::Sender<()>>>,
}

impl Volume {
    fn give_room(&self, more: usize) {
        *self.0.room.lock().expect("room") += more;
        self.0.room_came.notify_waiters();
    }

    fn put(&self) -> Vec<u64> {
        self.0.put.lock().expect("put").clone()
    }

    fn commit(&self, count: usize) {
        let mut commits = self.0.commits.lock().expect("commits");
        for commit in commits.drain(..count) {
            let _nobody_waits = commit.send(());
        }
    }
}

impl Target for Volume {
    type Pending = Pin<Box<dyn Future<Output = Result<Committed, WriteError>> + Send>>;

    fn put(&self, change: &Change) -> Result<Self::Pending, WriteError> {
        let mut room = self.0.room.lock().expect("room");
        if *room == 0 {
            return Err(WriteError::Refused(Refusal::Overloaded));
        }
        *room -= 1;
        let (Change::Write { offset, .. }
        | Change::Trim { offset, .. }
        | Change::Zeroes { offset, .. }) = change;
        self.0.put.lock().expect("put").push(*offset);
        let (commit, committed) = oneshot::channel();
        self.0.commits.lock().expect("commits").push_back(commit);
        Ok(Box::pin(async {
            let lost = WriteError::Refused(Refusal::Closed);
            committed.await.map_err(|_| lost)?;
            Ok(Committed {
                lsn: Lsn(1),
                count: 1,
                timestamp_us: 0,
            })
        }))
    }

    async fn ready(&self, _payload_bytes: usize) {
        let came = self.0.room_came.notified();
        if *self.0.room.lock().expect("room") == 0 {
            came.await;
        }
    }
}

fn line(volume: &Volume) -> Line<Volume> {
    let (line, runner) = Line::new(volume.clone(), 1 << 20, PARK_TIMEOUT);
    tokio::spawn(runner);
    line
}

fn write(offset: u64) -> Change {
    let data = Bytes::from_static(&[7; 4]);
    Change::Write { offset, data }
}

fn pieces(count: u64) -> Change {
    let len = count * RANGE_BYTES_MAX;
    Change::Trim { offset: 0, len }
}

/// Lets every task do what it can.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn what_waited_for_room_too_long_is_never_put_in_line() {
    let volume = Volume::default();
    let line = line(&volume);
    let old = tokio::spawn(line.change(write(1)));
    tokio::time::sleep(PARK_TIMEOUT / 2).await;
    let young = tokio::spawn(line.change(write(2)));
    tokio::time::sleep(PARK_TIMEOUT / 2 + Duration::from_secs(1)).await;
    volume.give_room(2);
    settle().await;
    assert!(matches!(old.await.expect("task"), Err(Failure::NoRoom)));
    assert_eq!(volume.put(), [2]);
    volume.commit(1);
    assert!(young.await.expect("task").is_ok());
}

/// The order of events of H11: a change before it takes longer to be put in line than the park timeout.
#[tokio::test(start_paused = true)]
async fn what_waited_behind_another_change_too_long_is_never_put_in_line() {
    let volume = Volume::default();
    let line = line(&volume);
    volume.give_room(1000);
    let places = PIECES_IN_LINE_MAX as u64;
    let long = tokio::spawn(line.change(pieces(places + 10)));
    let late = tokio::spawn(line.change(write(1)));
    for _ in 0..10 {
        tokio::time::sleep(PARK_TIMEOUT / 5).await;
        volume.commit(1);
    }
    settle().await;
    assert!(matches!(late.await.expect("task"), Err(Failure::NoRoom)));
    volume.commit(PIECES_IN_LINE_MAX);
    // Its own pieces advance, and so go on.
    assert!(long.await.expect("task").is_ok());
    assert_eq!(line.pieces_done(), places + 10);
    assert!(!volume.put().contains(&1));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_put_in_line_once_the_peer_is_gone() {
    let volume = Volume::default();
    let line = line(&volume);
    volume.give_room(1);
    let first = tokio::spawn(line.change(write(1)));
    let second = tokio::spawn(line.change(write(2)));
    settle().await;
    line.abandon();
    volume.give_room(10);
    assert!(matches!(second.await.expect("task"), Err(Failure::Gone)));
    assert_eq!(volume.put(), [1]);
    // What is in line is waited for.
    volume.commit(1);
    assert!(first.await.expect("task").is_ok());
}

#[tokio::test(start_paused = true)]
async fn pieces_in_line_are_bounded_for_all_changes_together() {
    let volume = Volume::default();
    let line = line(&volume);
    volume.give_room(1000);
    let places = PIECES_IN_LINE_MAX as u64;
    let changes: Vec<_> = (0..4)
        .map(|_| tokio::spawn(line.change(pieces(places - 1))))
        .collect();
    let mut left = 4 * (PIECES_IN_LINE_MAX - 1);
    while left > 0 {
        settle().await;
        let in_line = volume.0.commits.lock().expect("commits").len();
        assert!(in_line <= PIECES_IN_LINE_MAX && in_line > 0, "{in_line}");
        volume.commit(1);
        left -= 1;
    }
    for change in changes {
        assert!(change.await.expect("task").is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_that_is_in_line_in_part_ends_when_nothing_of_it_is_on_its_way() {
    let volume = Volume::default();
    let line = line(&volume);
    volume.give_room(1);
    let data = Bytes::from(vec![7; 2 << 20]);
    let mut change = Box::pin(line.change(Change::Write { offset: 0, data }));
    tokio::time::sleep(PARK_TIMEOUT * 2).await;
    assert!((&mut change).now_or_never().is_none());
    volume.commit(1);
    assert!(matches!(change.await, Err(Failure::NoRoom)));
}
