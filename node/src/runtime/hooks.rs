//! Hooks: commands that an operator has run when a volume on this node becomes primary, and when it is primary no more.
//!
//! * `promoted` runs before the epoch serves anybody, `demoted` after it stopped serving. An epoch gets the second only if it got as
//!   far as the first, and in that order; the hooks of one volume never run side by side on one node.
//! * Nothing depends on how they end: a failure is an event, and the volume goes on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use mainstay_types::{Epoch, VolumeName};
use mainstay_volume::Event;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::Node;
use super::handle::ToVolume;
use super::operator_command::{OperatorCommand, Variables};

/// The commands; each may be missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HookCommands {
    /// Before a new primary serves.
    pub promoted: Option<OperatorCommand>,
    /// After a primary stopped serving.
    pub demoted: Option<OperatorCommand>,
}

/// What is to be run, volume by volume.
#[derive(Debug, Default)]
pub struct Hooks {
    queues: Mutex<BTreeMap<VolumeName, Queue>>,
}

#[derive(Debug)]
struct Queue {
    calls: mpsc::UnboundedSender<Call>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
enum Call {
    /// This epoch is about to serve; the volume is told when it may.
    Promoted(Epoch, mpsc::UnboundedSender<ToVolume>),
    /// This epoch serves no more.
    Demoted(Epoch),
}

/// Runs the hook of a promotion, and then lets `volume` serve.
pub(super) fn promoted(
    node: &Arc<Node>,
    name: &VolumeName,
    epoch: Epoch,
    volume: mpsc::UnboundedSender<ToVolume>,
) {
    call(node, name, Call::Promoted(epoch, volume));
}

/// Runs the hook of a demotion.
pub(super) fn demoted(node: &Arc<Node>, name: &VolumeName, epoch: Epoch) {
    if node.settings.hooks.demoted.is_some() {
        call(node, name, Call::Demoted(epoch));
    }
}

/// Waits until every hook that was called has ended. No more are called afterwards.
pub(super) async fn finish(node: &Node) {
    let queues = std::mem::take(&mut *node.hooks.lock());
    for queue in queues.into_values() {
        drop(queue.calls);
        let _ended = queue.task.await;
    }
}

impl Hooks {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<VolumeName, Queue>> {
        self.queues.lock().expect("no panic while the lock is held")
    }
}

fn call(node: &Arc<Node>, name: &VolumeName, call: Call) {
    let mut queues = node.hooks.lock();
    let queue = queues.entry(name.clone()).or_insert_with(|| {
        let (calls, called) = mpsc::unbounded_channel();
        let task = node
            .handle
            .spawn(run_all(node.clone(), name.clone(), called));
        Queue { calls, task }
    });
    let _ended = queue.calls.send(call);
}

async fn run_all(node: Arc<Node>, name: VolumeName, mut calls: mpsc::UnboundedReceiver<Call>) {
    let hooks = node.settings.hooks.clone();
    while let Some(call) = calls.recv().await {
        match call {
            Call::Promoted(epoch, volume) => {
                run(&node, &name, epoch, "promoted", hooks.promoted.as_ref()).await;
                let _stopped = volume.send(ToVolume::Event(Event::Ready { epoch }));
            }
            Call::Demoted(epoch) => {
                run(&node, &name, epoch, "demoted", hooks.demoted.as_ref()).await;
            }
        }
    }
}

async fn run(
    node: &Node,
    name: &VolumeName,
    epoch: Epoch,
    hook: &'static str,
    command: Option<&OperatorCommand>,
) {
    let Some(command) = command else { return };
    match command.run(variables(node, name, epoch, hook)).await {
        Ok(said) => tracing::info!(volume = %name, %epoch, hook, said, "a hook ran"),
        Err(said) => node.events.hook_failed(name, epoch, hook, &said),
    }
}

fn variables(node: &Node, name: &VolumeName, epoch: Epoch, hook: &str) -> Variables {
    let role = if hook == "promoted" {
        "primary"
    } else {
        "replica"
    };
    let settings = &node.settings;
    vec![
        ("MAINSTAY_VOLUME", name.to_string()),
        ("MAINSTAY_ROLE", role.to_owned()),
        ("MAINSTAY_NODE", settings.node.to_string()),
        ("MAINSTAY_EPOCH", epoch.to_string()),
        ("MAINSTAY_INSTANCE", node.instance.to_string()),
        ("MAINSTAY_ADDRESS", settings.address.clone()),
    ]
}
