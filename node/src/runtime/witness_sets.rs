//! Who the witnesses are, as this node knows it: from its configuration at first, later from what witnesses decided. Kept in
//! a file, so that a node finds them again after all of the first ones were replaced.
//!
//! Nothing is decided here: a set comes from a witness that says that it was decided, and the newer one counts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use bytes::Bytes;
use mainstay_proto::v1 as pb;
use mainstay_proto::v1::change_witnesses_reply::Outcome;
use mainstay_replication::message::{Message, SetStep, WitnessMessage};
use mainstay_replication::{ChangeRefused, ChangeRequest, SetTag, Voter, WitnessInput, WitnessSet};
use mainstay_types::NodeId;
use mainstay_volume::Event;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tonic::{Code, Response, Status};

use super::{Node, PeerSettings, Settings, events, status};

/// In the data directory.
pub const FILE: &str = "witnesses.json";

/// How long a caller waits who does not say. The longest lease must pass, and each step needs a majority.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often a set that could not be kept is written again.
const KEEP_AGAIN: Duration = Duration::from_secs(1);

type Result_ = Result<Arc<WitnessSet>, ChangeRefused>;

/// The set that this node goes by, and changes that its witness is at.
#[derive(Debug)]
pub struct WitnessSets {
    path: PathBuf,
    known: RwLock<Arc<WitnessSet>>,
    /// Held while the file is replaced.
    writing: Mutex<()>,
    next: AtomicU64,
    waiting: Mutex<BTreeMap<u64, oneshot::Sender<Result_>>>,
}

/// A set as it is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StoredSet {
    version: u64,
    id: u64,
    voters: Vec<StoredVoter>,
    next: Option<Vec<StoredVoter>>,
}

/// One witness as it is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StoredVoter {
    node: NodeId,
    store: u64,
    address: String,
}

impl From<&WitnessSet> for StoredSet {
    fn from(set: &WitnessSet) -> Self {
        let voters = |voters: &[Voter]| {
            let voter = |voter: &Voter| StoredVoter {
                node: voter.node,
                store: voter.store,
                address: voter.address.clone(),
            };
            voters.iter().map(voter).collect()
        };
        Self {
            version: set.tag.version,
            id: set.tag.id,
            voters: voters(&set.voters),
            next: set.next.as_deref().map(voters),
        }
    }
}

impl From<StoredSet> for WitnessSet {
    fn from(set: StoredSet) -> Self {
        let voters = |voters: Vec<StoredVoter>| {
            let voter = |voter: StoredVoter| Voter {
                node: voter.node,
                store: voter.store,
                address: voter.address,
            };
            voters.into_iter().map(voter).collect()
        };
        Self {
            tag: SetTag {
                version: set.version,
                id: set.id,
            },
            voters: voters(set.voters),
            next: set.next.map(voters),
        }
    }
}

/// The set that the configuration names: what a cluster begins with.
#[must_use]
pub fn first(settings: &Settings) -> WitnessSet {
    let own = (settings.witness && !settings.standby).then(|| Voter {
        node: settings.node,
        store: 0,
        address: settings.address.clone(),
    });
    let others = settings.peers.iter().filter(|peer| peer.votes());
    let others = others.map(|peer| Voter {
        node: peer.node,
        store: 0,
        address: peer.address.clone(),
    });
    WitnessSet::first(own.into_iter().chain(others).collect())
}

/// The set in the file of `dir`, if there is one.
///
/// # Errors
/// The file is there and does not read.
pub fn load(dir: &Path) -> anyhow::Result<Option<WitnessSet>> {
    let path = dir.join(FILE);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => anyhow::bail!("{}: {error}", path.display()),
    };
    let set: StoredSet = serde_json::from_slice(&bytes).map_err(|error| {
        anyhow::anyhow!(
            "{}: {error}. It says who the witnesses are; copy it from another node, or remove it if the witnesses are still \
             those of the configuration",
            path.display()
        )
    })?;
    Ok(Some(set.into()))
}

/// The set to begin with: the newest of what the witness's store, the file and the configuration say. What a node has never
/// kept before is in the file on return: later its configuration counts no more for who the witnesses are.
///
/// # Errors
/// The file does not read.
pub fn at_start(settings: &Settings, stored: Option<WitnessSet>) -> anyhow::Result<WitnessSet> {
    let first = first(settings);
    let file = load(&settings.data_dir)?;
    let kept = stored.into_iter().chain(file);
    let Some(kept) = kept.max_by_key(|set| set.tag.version) else {
        if settings.standby && !settings.data {
            // It has nothing to say to a witness, and waits to be told.
            return Ok(WitnessSet::default());
        }
        let path = settings.data_dir.join(FILE);
        if let Err(error) = crate::files::write_json_durably(&path, &StoredSet::from(&first)) {
            tracing::warn!(path = %path.display(), %error, "cannot keep who the witnesses are");
        }
        return Ok(first);
    };
    // One that waits is not among the first ones that it knows of: its own configuration leaves it out.
    if kept.tag.version == 1 && kept.tag != first.tag && !settings.standby {
        tracing::warn!(
            "[[peers]] names the witnesses {:?}, but this node began with {:?}, and goes by those: witnesses of a cluster that has run \
             are changed with `mainstay witness`, never in the files",
            first.nodes(),
            kept.nodes()
        );
    }
    // Under the same name the configuration knows the addresses better.
    Ok(if kept.tag == first.tag { first } else { kept })
}

impl WitnessSets {
    /// Goes by `set`.
    #[must_use]
    pub fn new(dir: &Path, set: WitnessSet) -> Self {
        Self {
            path: dir.join(FILE),
            known: RwLock::new(Arc::new(set)),
            writing: Mutex::default(),
            next: AtomicU64::new(1),
            waiting: Mutex::default(),
        }
    }

    /// The set that this node goes by.
    #[must_use]
    pub fn known(&self) -> Arc<WitnessSet> {
        Arc::clone(&self.known.read().expect("no panic while the lock is held"))
    }

    /// Puts a newer set in the place of the known one.
    fn replace(&self, set: &Arc<WitnessSet>) -> bool {
        let mut known = self.known.write().expect("no panic while the lock is held");
        let newer = set.tag.version > known.tag.version;
        if newer {
            *known = set.clone();
        }
        newer
    }

    /// Writes what is known now to the file.
    fn save(&self) -> std::io::Result<()> {
        let _alone = self
            .writing
            .lock()
            .expect("no panic while the lock is held");
        let set = StoredSet::from(&*self.known());
        crate::files::write_json_durably(&self.path, &set)
    }

    /// The witness's answer to an operator.
    pub fn changed(&self, id: u64, result: Result_) {
        if let Some(waiting) = self.take(id) {
            let _gone = waiting.send(result);
        }
    }

    fn take(&self, id: u64) -> Option<oneshot::Sender<Result_>> {
        let mut waiting = self
            .waiting
            .lock()
            .expect("no panic while the lock is held");
        waiting.remove(&id)
    }
}

impl Node {
    /// The witnesses, as this node knows them.
    #[must_use]
    pub fn witnesses(&self) -> Arc<WitnessSet> {
        self.witness_sets.known()
    }

    /// What a witness, or another node, says of the witnesses.
    pub(super) fn hear_of_witnesses(self: &Arc<Self>, from: NodeId, body: WitnessMessage) {
        if self.settings.witness {
            self.to_witness(from, Message::Witness(body.clone()));
        }
        match body {
            WitnessMessage::Set(set) => {
                let known = self.witnesses();
                if set.tag.version > known.tag.version {
                    self.learn_witnesses(&set);
                } else if set.tag.version == known.tag.version && set.tag != known.tag {
                    self.say_other_witnesses(from);
                }
            }
            WitnessMessage::SetStep(SetStep::Wanted) if !self.settings.witness => {
                let set = Message::Witness(WitnessMessage::Set(self.witnesses()));
                self.send(from, set, Bytes::new());
            }
            _ => {}
        }
    }

    /// Goes by a decided set from now on, if it is news: the heartbeats, every volume, the links.
    pub(super) fn learn_witnesses(self: &Arc<Self>, set: &Arc<WitnessSet>) {
        if !self.witness_sets.replace(set) {
            return;
        }
        for voter in set.all() {
            self.add_witness_peer(voter.node, &voter.address);
        }
        self.beats.witnesses(Arc::clone(set));
        for handle in self.volumes() {
            handle.tell(Event::Witnesses(Arc::clone(set)));
        }
        self.events.witnesses(set);
        self.handle.spawn(Arc::clone(self).keep_witnesses());
    }

    /// Keeps who the witnesses are; tries until it is done or the node stops. After a restart the node would ask those of its
    /// configuration, and none of them may be left.
    async fn keep_witnesses(self: Arc<Self>) {
        let mut told = false;
        loop {
            let node = Arc::clone(&self);
            let saved = tokio::task::spawn_blocking(move || node.witness_sets.save()).await;
            let Err(error) = saved.unwrap_or_else(|ended| Err(std::io::Error::other(ended))) else {
                return;
            };
            if !std::mem::replace(&mut told, true) {
                let path = self.witness_sets.path.display();
                tracing::error!(%path, %error, "cannot keep who the witnesses are: it is tried again");
            }
            tokio::select! {
                () = self.until_stopping() => return,
                () = tokio::time::sleep(KEEP_AGAIN) => {}
            }
        }
    }

    /// A link to a witness that the configuration may not name.
    pub(super) fn add_witness_peer(self: &Arc<Self>, node: NodeId, address: &str) {
        if node != self.settings.node && !address.is_empty() {
            let peer = PeerSettings {
                node,
                address: address.to_owned(),
                data: false,
                witness: true,
                standby: true,
            };
            super::peers::add(self, peer);
        }
    }

    /// Says once of a node that it goes by other witnesses.
    pub(super) fn say_other_witnesses(&self, node: NodeId) {
        let mut said = self
            .forgetful
            .lock()
            .expect("no panic while the lock is held");
        if said.insert(node) {
            let text = format!(
                "node {node} was started with other witnesses than node {}: neither answers the other's witnesses. Give every node \
                 the same [[peers]]; witnesses of a running cluster are changed with `mainstay witness`",
                self.settings.node
            );
            let event = events::warning(events::EventKind::WitnessesChanged, text);
            self.events.add(events::Event {
                severity: events::Severity::Alarm,
                ..event
            });
        }
    }
}

/// Serves `ListWitnesses`.
#[must_use]
pub fn list(node: &Node) -> pb::ListWitnessesReply {
    let lease = node.settings.lease.lease;
    let heard = node.heard().into_iter();
    let heard = heard.filter(|(_, ago)| ago.is_some_and(|ago| ago < lease));
    let own = (node.settings.standby).then_some(node.settings.node);
    let set = node.witnesses();
    let standby = node.settings.peers.iter().filter(|peer| peer.standby);
    let standby = standby.map(|peer| peer.node).chain(own);
    pb::ListWitnessesReply {
        set: Some(crate::wire::encode_set(&set)),
        heard: heard.map(|(node, _)| node.0).collect(),
        standby: standby
            .filter(|node| !set.contains(*node))
            .map(|node| node.0)
            .collect(),
    }
}

/// Serves `ChangeWitnesses`, here or at a witness.
///
/// # Errors
/// `INVALID_ARGUMENT`, `UNAVAILABLE` if no witness answers, `DEADLINE_EXCEEDED` if it is still under way; refusals are replies.
pub async fn change(
    node: &Arc<Node>,
    request: pb::ChangeWitnessesRequest,
) -> Result<Response<pb::ChangeWitnessesReply>, Status> {
    let mut request = request;
    let add = request.add.map(NodeId);
    if let Some(added) = add
        && request.address.is_empty()
    {
        let known = node.settings.address_of(added).ok_or_else(|| {
            Status::invalid_argument(format!(
                "node {added} is not in the configuration of node {}: say where it is reached, with `--address HOST:PORT`",
                node.settings.node
            ))
        })?;
        request.address = known.to_owned();
    }
    if let Some(known) = add.and_then(|added| node.settings.address_of(added))
        && known != request.address
    {
        return Err(Status::invalid_argument(format!(
            "the configuration of node {} says that this node is reached at {known}, not at {}: correct it there first",
            node.settings.node, request.address
        )));
    }
    if !node.settings.witness || !node.witnesses().contains(node.settings.node) {
        if request.forwarded {
            return Err(Status::unavailable("that witness has no vote: ask again"));
        }
        return forward(node, request).await;
    }
    if let Some(added) = add {
        node.add_witness_peer(added, &request.address);
    }
    let id = node.witness_sets.next.fetch_add(1, Ordering::Relaxed);
    let (ended, wait) = oneshot::channel();
    let waiting = &node.witness_sets.waiting;
    waiting
        .lock()
        .expect("no panic while the lock is held")
        .insert(id, ended);
    node.ask_witness(WitnessInput::Change(ChangeRequest {
        id,
        add: add.map(|added| (added, request.address.clone())),
        remove: request.remove.map(NodeId),
    }));
    let patience = match request.patience_ms {
        0 => PATIENCE,
        ms => Duration::from_millis(u64::from(ms.min(600_000))),
    };
    match tokio::time::timeout(patience, wait).await {
        Ok(Ok(Ok(set))) => Ok(reply(Outcome::Changed(crate::wire::encode_set(&set)))),
        Ok(Ok(Err(refused))) => {
            let message = why_not(&refused);
            Ok(reply(Outcome::Refused(pb::WitnessesRefused { message })))
        }
        _ => {
            node.witness_sets.take(id);
            Err(Status::deadline_exceeded(
                "the change is still under way and goes on by itself: see `mainstay witness list`",
            ))
        }
    }
}

fn reply(outcome: Outcome) -> Response<pb::ChangeWitnessesReply> {
    Response::new(pb::ChangeWitnessesReply {
        outcome: Some(outcome),
    })
}

/// Any witness may drive it, so the first that takes the request does.
async fn forward(
    node: &Arc<Node>,
    request: pb::ChangeWitnessesRequest,
) -> Result<Response<pb::ChangeWitnessesReply>, Status> {
    let request = pb::ChangeWitnessesRequest {
        forwarded: true,
        ..request
    };
    let mut last = Status::unavailable("no witness answers");
    let set = node.witnesses();
    let others = set
        .all()
        .filter(|voter| voter.node != node.settings.node && Some(voter.node.0) != request.remove);
    for voter in others {
        match status::admin(&voter.address).await {
            Ok(mut client) => match client.change_witnesses(request.clone()).await {
                // Not taken: another one may be able to.
                Err(status) if status.code() == Code::Unavailable => last = status,
                answer => return answer,
            },
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn why_not(refused: &ChangeRefused) -> String {
    match refused {
        ChangeRefused::NoVote => "the witness that was asked has no vote any more: ask again".to_owned(),
        ChangeRefused::Busy => {
            "another change is under way: wait until `mainstay witness list` shows its end".to_owned()
        }
        ChangeRefused::Known(node) => format!(
            "node {node} is a witness already. If its store was lost, remove it first, then add it again"
        ),
        ChangeRefused::Unknown(node) => {
            format!("node {node} is no witness: see `mainstay witness list`")
        }
        ChangeRefused::Empty => "no witness would be left, or nothing would change".to_owned(),
        ChangeRefused::NoAnswer(node) => format!(
            "node {node} does not answer as one that waits to become a witness. Start it with the role \"standby-witness\", and \
             check its address, and that its [[peers]] name the witnesses"
        ),
        ChangeRefused::NoMajorityLeft(silent) => format!(
            "of the witnesses that would be left, {silent:?} do not answer, and the others are no majority: such a set could \
             decide nothing, and not be left again. Bring one of them back, or replace one of those that do not answer instead"
        ),
        ChangeRefused::Overtaken(set) => format!(
            "another change came first: the witnesses are {:?} now. Look, and ask again if it is still wanted",
            set.nodes()
        ),
        ChangeRefused::Unsettled => {
            "no majority of the witnesses answered: whether the change goes on is unknown; see `mainstay witness list`"
                .to_owned()
        }
    }
}
