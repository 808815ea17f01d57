//! The witness's thread: the core over its durable records, one transaction for all that arrived together.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mainstay_replication::{
    OpId, SetState, Witness, WitnessEvent, WitnessInput, WitnessOutput, WitnessSet, WitnessStart,
};
use tokio::sync::mpsc;

use super::witness_store::{StoreError, WitnessStore, Write};
use super::{Node, clock, external_fence, witness_sets};

/// Inputs taken before what they lead to is stored.
const INPUTS_AT_ONCE: usize = 256;

/// How often a vote that found no room is stored again.
const ROOM_AGAIN: Duration = Duration::from_millis(250);

/// Runs the witness until the node has stopped. Blocks its thread.
pub fn run(
    node: &Arc<Node>,
    mut store: WitnessStore,
    mut inputs: mpsc::UnboundedReceiver<WitnessInput>,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "no runtime for the witness"),
    };
    let (records, state) = match store
        .load()
        .and_then(|records| Ok((records, store.state()?)))
    {
        Ok(found) => found,
        Err(error) => return tracing::error!(%error, "the witness does not start"),
    };
    let start = WitnessStart {
        node: node.settings.node,
        instance: node.instance,
        stored: state.is_some(),
        state: state.unwrap_or_else(|| first_state(node)),
        records,
        seed: node.random(),
    };
    let mut witness = Witness::new(clock::mono(), node.settings.lease.clone(), start);
    loop {
        if let Err(error) = carry_out(node, &mut store, &mut inputs, &mut witness) {
            // A witness that cannot write must not answer: what it promised would be forgotten.
            return tracing::error!(%error, "the witness cannot store its votes any more and stops answering");
        }
        let wait = clock::until(witness.next_deadline(), Duration::from_secs(1));
        let input = runtime.block_on(async {
            tokio::select! {
                input = tokio::time::timeout(wait, inputs.recv()) => Some(input),
                () = node.until_stopped() => None,
            }
        });
        match input {
            Some(Ok(Some(input))) => witness.handle(clock::mono(), input),
            Some(Ok(None)) | None => return,
            Some(Err(_)) => witness.handle(clock::mono(), WitnessInput::Tick),
        }
        for _ in 0..INPUTS_AT_ONCE {
            let Ok(input) = inputs.try_recv() else { break };
            witness.handle(clock::mono(), input);
        }
    }
}

/// Stores what must be stored, and sends what may be sent.
fn carry_out(
    node: &Arc<Node>,
    store: &mut WitnessStore,
    inputs: &mut mpsc::UnboundedReceiver<WitnessInput>,
    witness: &mut Witness,
) -> Result<(), StoreError> {
    loop {
        let mut writes = Vec::new();
        let mut last: Option<OpId> = None;
        while let Some(output) = witness.poll_output() {
            match output {
                WitnessOutput::Persist { op, volume, record } => {
                    writes.push(Write::Record(volume, record));
                    last = Some(op);
                }
                WitnessOutput::PersistSet { op, state, wipe } => {
                    writes.push(Write::Set(state, wipe));
                    last = Some(op);
                }
                WitnessOutput::Set(set) => node.learn_witnesses(&set),
                WitnessOutput::Changed { id, result } => node.witness_sets.changed(id, result),
                WitnessOutput::Send { to, message } => node.send(to, message, Bytes::new()),
                WitnessOutput::Event(event) => report(node, event),
                WitnessOutput::ExternalFence(fence) => external_fence::start(node, fence),
                WitnessOutput::Forced { id, result } => node.forced.ended(id, result),
            }
        }
        let Some(op) = last else { return Ok(()) };
        save(store, inputs, &writes)?;
        witness.handle(clock::mono(), WitnessInput::Persisted(op));
    }
}

/// Stores what must be; waits for room where there is none. Until then this witness is silent, and what it is told is dropped,
/// as if the network had lost it: nothing may be answered that builds on votes which are not stored.
fn save(
    store: &mut WitnessStore,
    inputs: &mut mpsc::UnboundedReceiver<WitnessInput>,
    writes: &[Write],
) -> Result<(), StoreError> {
    let mut full = false;
    loop {
        match store.save(writes) {
            Err(StoreError::NoSpace) => {}
            saved => {
                if full && saved.is_ok() {
                    tracing::info!("there is room again: the witness votes");
                }
                return saved;
            }
        }
        if !std::mem::replace(&mut full, true) {
            tracing::warn!("the witness's disk is full: it gives no votes until there is room");
        }
        std::thread::sleep(ROOM_AGAIN);
        while inputs.try_recv().is_ok() {}
        if inputs.is_closed() {
            return Err(StoreError::NoSpace);
        }
    }
}

/// What a witness that has never voted goes by.
fn first_state(node: &Node) -> SetState {
    let set = if node.settings.standby {
        WitnessSet::default()
    } else {
        witness_sets::first(&node.settings)
    };
    SetState {
        set,
        lease_longest: node.settings.lease.lease_longest,
        ..SetState::default()
    }
}

fn report(node: &Node, event: WitnessEvent) {
    node.events.witness(node, event);
}
