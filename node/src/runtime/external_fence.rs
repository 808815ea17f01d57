//! Runs the external fence for the witness here. Whether and when is decided in `replication/src/witness/external.rs`.

use std::sync::Arc;

use mainstay_replication::{ExternalFence, WitnessInput};

use super::Node;
use super::operator_command::Variables;

/// Runs the configured command, and tells the witness how it ended.
pub(super) fn start(node: &Arc<Node>, fence: ExternalFence) {
    let id = fence.id;
    let Some(command) = node.settings.fence.clone() else {
        let result = Err("no command is configured".to_owned());
        return node.ask_witness(WitnessInput::ExternallyFenced { id, result });
    };
    tracing::warn!(volume = %fence.name, node = %fence.node, epoch = %fence.epoch, "the external fence runs");
    let variables = variables(node, &fence);
    let node = node.clone();
    node.handle.clone().spawn(async move {
        let result = command.run(variables).await;
        node.ask_witness(WitnessInput::ExternallyFenced { id, result });
    });
}

fn variables(node: &Node, fence: &ExternalFence) -> Variables {
    let address = node.settings.address_of(fence.node).unwrap_or_default();
    let instance = fence.instance.map(|instance| instance.to_string());
    vec![
        ("MAINSTAY_VOLUME", fence.name.to_string()),
        ("MAINSTAY_NODE", fence.node.to_string()),
        ("MAINSTAY_EPOCH", fence.epoch.to_string()),
        ("MAINSTAY_INSTANCE", instance.unwrap_or_default()),
        ("MAINSTAY_ADDRESS", address.to_owned()),
    ]
}
