//! The supervisor above one worker.

use std::io::Read;
use std::time::Duration;

use mainstay_node::devcluster::Signal;
use mainstay_node::processes;
use mainstay_node::supervisor::{EXIT_CONFIG, read_run_file};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use crate::Test;
use crate::fakes::EXIT_AT_ONCE;
use crate::support::{TestNode, ended, kill, wait_for};

pub(crate) const TESTS: &[Test] = &[
    (
        "a_killed_worker_is_released_once_and_replaced_by_a_new_instance",
        a_killed_worker_is_released_once_and_replaced_by_a_new_instance,
    ),
    (
        "without_restart_the_supervisor_reports_and_ends_with_the_workers_code",
        without_restart_the_supervisor_reports_and_ends_with_the_workers_code,
    ),
    ("a_clean_stop_reports_nothing", a_clean_stop_reports_nothing),
    (
        "a_worker_that_cannot_run_is_not_started_again",
        a_worker_that_cannot_run_is_not_started_again,
    ),
    (
        "a_worker_that_keeps_failing_is_started_again_and_a_signal_ends_the_pause",
        a_worker_that_keeps_failing_is_started_again_and_a_signal_ends_the_pause,
    ),
    (
        "a_worker_outlives_its_supervisor_and_the_next_one_replaces_it",
        a_worker_outlives_its_supervisor_and_the_next_one_replaces_it,
    ),
    (
        "a_second_supervisor_of_one_node_is_refused",
        a_second_supervisor_of_one_node_is_refused,
    ),
    (
        "a_run_file_that_cannot_be_written_is_written_once_it_can",
        a_run_file_that_cannot_be_written_is_written_once_it_can,
    ),
    (
        "a_worker_that_cannot_be_started_for_now_is_started_later",
        a_worker_that_cannot_be_started_for_now_is_started_later,
    ),
];

fn a_killed_worker_is_released_once_and_replaced_by_a_new_instance() {
    let mut node = TestNode::new();
    let mut supervisor = node.supervise(&[]);
    let first = node.worker(&supervisor, None);
    kill(first.pid, Signal::KILL);
    let second = node.worker(&supervisor, Some(first));
    assert_ne!(first.instance, second.instance);
    let report = wait_for("a report", || node.reports().first().cloned());
    assert_eq!(report, format!("1 {} gone", first.instance));

    kill(supervisor.id(), Signal::TERM);
    assert_eq!(ended(&mut supervisor).code(), Some(0));
    assert_eq!(node.reports().len(), 1, "the second one stopped cleanly");
}

fn without_restart_the_supervisor_reports_and_ends_with_the_workers_code() {
    let mut node = TestNode::new();
    let mut supervisor = node.supervise(&["--no-restart"]);
    let worker = node.worker(&supervisor, None);
    kill(worker.pid, Signal::KILL);
    assert_eq!(ended(&mut supervisor).code(), Some(128 + 9));
    assert_eq!(node.reports(), [format!("1 {} gone", worker.instance)]);
    assert_eq!(node.starts().len(), 1);
}

fn a_clean_stop_reports_nothing() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut node = TestNode::new();
        let mut supervisor = node.supervise(&[]);
        let worker = node.worker(&supervisor, None);
        wait_for("the worker's handlers", || answers(&node).then_some(()));
        kill(supervisor.id(), signal);
        assert_eq!(ended(&mut supervisor).code(), Some(0), "{signal:?}");
        assert!(!processes::runs(worker.pid, &worker.instance.to_string()));
        assert_eq!(node.reports(), Vec::<String>::new());
    }
}

/// A worker that was started has handlers once it listens.
fn answers(node: &TestNode) -> bool {
    let config = mainstay_node::config::Config::load(&node.config).expect("good");
    std::net::TcpStream::connect(config.node.http.0).is_ok()
}

fn a_worker_that_cannot_run_is_not_started_again() {
    let mut node = TestNode::new();
    node.put(EXIT_AT_ONCE, &EXIT_CONFIG.to_string());
    let mut supervisor = node.supervise(&[]);
    assert_eq!(ended(&mut supervisor).code(), Some(EXIT_CONFIG));
    assert_eq!(node.starts().len(), 1);
}

fn a_worker_that_keeps_failing_is_started_again_and_a_signal_ends_the_pause() {
    let mut node = TestNode::new();
    node.put(EXIT_AT_ONCE, "3");
    let mut supervisor = node.supervise(&[]);
    wait_for("four starts", || (node.starts().len() >= 4).then_some(()));
    kill(supervisor.id(), Signal::TERM);
    assert_eq!(ended(&mut supervisor).code(), Some(3));
    let mut starts = node.starts();
    let count = starts.len();
    starts.sort();
    starts.dedup();
    assert_eq!(starts.len(), count, "no instance twice");
}

fn a_worker_outlives_its_supervisor_and_the_next_one_replaces_it() {
    let mut node = TestNode::new();
    let mut first = node.supervise(&[]);
    let orphan = node.worker(&first, None);
    wait_for("the worker's handlers", || answers(&node).then_some(()));
    kill(first.id(), Signal::KILL);
    ended(&mut first);
    assert!(processes::runs(orphan.pid, &orphan.instance.to_string()));

    let mut second = node.supervise(&[]);
    let worker = node.worker(&second, Some(orphan));
    assert!(!processes::runs(orphan.pid, &orphan.instance.to_string()));
    wait_for("the worker's handlers", || answers(&node).then_some(()));
    kill(second.id(), Signal::TERM);
    ended(&mut second);
    assert_ne!(worker.instance, orphan.instance);
    assert_eq!(node.reports(), Vec::<String>::new(), "both stopped cleanly");
}

fn a_second_supervisor_of_one_node_is_refused() {
    let mut node = TestNode::new();
    let mut first = node.supervise(&[]);
    node.worker(&first, None);
    let mut second = node.supervise(&[]);
    assert_eq!(ended(&mut second).code(), Some(1));
    let mut said = String::new();
    let mut stderr = second.stderr.take().expect("piped");
    stderr.read_to_string(&mut said).expect("text");
    let expected = format!(
        "node 1 is already run by process {}; stop that process first",
        first.id()
    );
    assert!(said.contains(&expected), "{said}");
    assert_eq!(node.starts().len(), 1);
    kill(first.id(), Signal::TERM);
    ended(&mut first);
}

/// The file was written when the worker began and when it ended, and at no other time: a worker that began on a full disk was hidden
/// from everybody for as long as it ran.
fn a_run_file_that_cannot_be_written_is_written_once_it_can() {
    let mut node = TestNode::new();
    let scratch = node.data_dir.join("supervisor.json.new");
    std::fs::create_dir(&scratch).expect("in the way");
    let mut supervisor = node.supervise(&[]);
    wait_for("a worker", || node.starts().first().cloned());
    wait_for("the worker's handlers", || answers(&node).then_some(()));
    assert_eq!(read_run_file(&node.data_dir), None);
    std::fs::remove_dir(&scratch).expect("out of the way");
    let worker = node.worker(&supervisor, None);
    assert!(processes::runs(worker.pid, &worker.instance.to_string()));
    kill(supervisor.id(), Signal::TERM);
    assert_eq!(ended(&mut supervisor).code(), Some(0));
}

/// One start that failed for want of descriptors, or of memory, ended the supervisor, and nobody was left to start the node again.
fn a_worker_that_cannot_be_started_for_now_is_started_later() {
    let mut node = TestNode::new();
    let mut supervisor = node.supervise(&[]);
    let first = node.worker(&supervisor, None);
    let id = i32::try_from(supervisor.id()).ok().and_then(Pid::from_raw);
    let limit = |limit| prlimit(id, Resource::Nofile, limit).expect("limited");
    let before = getrlimit(Resource::Nofile);
    limit(Rlimit {
        current: Some(0),
        ..before
    });
    kill(first.pid, Signal::KILL);
    wait_for("its end", || {
        let runs = processes::runs(first.pid, &first.instance.to_string());
        (!runs).then_some(())
    });
    // Some of its tries: the pauses are short at first.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(supervisor.try_wait().expect("our child"), None);
    limit(before);
    node.worker(&supervisor, Some(first));
    kill(supervisor.id(), Signal::TERM);
    assert_eq!(ended(&mut supervisor).code(), Some(0));
}
