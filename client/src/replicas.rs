//! Reads of what is committed, from any node that holds a copy.
//!
//! Each read has a stream to itself while it runs; streams are kept for the next read. A node that does not answer well (it holds no copy,
//! it is behind what this handle has seen, its disk does not read back, it is silent) is left for the next one, until the deadline.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mainstay_proto::v1 as pb;
use mainstay_proto::v1::client_reply::Body;
use mainstay_proto::v1::client_request;
use mainstay_types::{Lineage, Lsn};

use crate::cluster::{Backoff, Cluster};
use crate::connect::{Failure, Opening, Verdict, VolumeStream, open_at, refusal};
use crate::{ReadError, Refusal};

/// How long one node may take, if there are others.
const NODE_TIMEOUT: Duration = Duration::from_secs(1);

/// Streams kept for later reads.
const IDLE_MAX: usize = 8;

/// What a handle knows of a log. Only rises.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// The greatest position that is committed.
    commit: AtomicU64,
    /// Everything below was given up. A copy may know enough and not that: the trim is an entry further on.
    first: AtomicU64,
}

impl Seen {
    pub(crate) fn note(&self, lsn: Lsn) {
        self.commit.fetch_max(lsn.0, Ordering::AcqRel);
    }

    pub(crate) fn note_first(&self, first: Lsn) {
        self.first.fetch_max(first.0, Ordering::AcqRel);
    }

    pub(crate) fn commit(&self) -> Lsn {
        Lsn(self.commit.load(Ordering::Acquire))
    }

    pub(crate) fn first(&self) -> Lsn {
        Lsn(self.first.load(Ordering::Acquire))
    }
}

/// Streams to the copies of one volume.
#[derive(Debug)]
pub(crate) struct Replicas {
    cluster: Arc<Cluster>,
    opening: Opening,
    pub(crate) seen: Arc<Seen>,
    idle: Mutex<Vec<VolumeStream>>,
    /// Whom to ask first, among all.
    next: AtomicUsize,
}

/// Why a node did not serve a read.
enum Left {
    /// Another one may.
    TryNext,
    /// This one denies that the volume exists.
    Denied,
    /// This one lacks what is asked for, and another one may have it.
    Lacking(Refusal),
    /// None will.
    Refused(Refusal),
}

impl Replicas {
    /// Copies of one history alone, if that is known: what is seen in one says nothing in another.
    pub(crate) fn new(
        cluster: Arc<Cluster>,
        volume: String,
        lineage: Option<Lineage>,
        first: usize,
    ) -> Self {
        Self {
            cluster,
            opening: Opening {
                lineage,
                ..Opening::any_copy(volume)
            },
            seen: Arc::default(),
            idle: Mutex::default(),
            next: AtomicUsize::new(first),
        }
    }

    /// What a read must include.
    pub(crate) fn at_least(&self) -> pb::AnyCommitted {
        pb::AnyCommitted {
            at_least: self.seen.commit().0,
        }
    }

    /// Asks one node after the other. Cancelling loses nothing but the stream.
    pub(crate) async fn query(
        &self,
        body: client_request::Body,
        deadline: Duration,
    ) -> Result<Body, ReadError> {
        let waited = deadline;
        tokio::time::timeout(deadline, self.ask_around(body))
            .await
            .unwrap_or(Err(ReadError::Deadline { waited }))
    }

    async fn ask_around(&self, body: client_request::Body) -> Result<Body, ReadError> {
        let kept = self.take_idle();
        if let Some(stream) = kept {
            match self.ask(stream, body.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(Left::Refused(refusal)) => return Err(ReadError::Refused(refusal)),
                Err(Left::TryNext | Left::Denied | Left::Lacking(_)) => {}
            }
        }
        let mut pause = Backoff::new(&self.cluster.config);
        loop {
            let nodes = self.cluster.addresses();
            let (mut denials, mut lacking) = (0, Vec::new());
            for _ in &nodes {
                let at = self.next.load(Ordering::Relaxed) % nodes.len();
                match self.ask_node(&nodes[at], body.clone()).await {
                    Ok(answer) => return Ok(answer),
                    Err(Left::TryNext) => {}
                    Err(Left::Denied) => denials += 1,
                    Err(Left::Lacking(refusal)) => lacking.push(refusal),
                    Err(Left::Refused(refusal)) => return Err(ReadError::Refused(refusal)),
                }
                self.next.fetch_add(1, Ordering::Relaxed);
            }
            if denials > 0 && denials == nodes.len() {
                return Err(ReadError::Refused(Refusal::NoSuchVolume));
            }
            if denials + lacking.len() == nodes.len()
                && let Some(refusal) = lacking.pop()
            {
                return Err(ReadError::Refused(refusal));
            }
            pause.wait().await;
        }
    }

    async fn ask_node(&self, address: &str, body: client_request::Body) -> Result<Body, Left> {
        let opened = open_at(&self.cluster, address, &self.opening);
        match tokio::time::timeout(NODE_TIMEOUT, opened).await {
            Ok(Ok(stream)) => self.ask(stream, body).await,
            Ok(Err(Failure::Refused(Refusal::NoSuchVolume))) => Err(Left::Denied),
            // It may be this node that has not heard of the history that the volume has now.
            Ok(Err(Failure::Refused(refusal @ Refusal::HistoryReplaced { .. }))) => {
                Err(Left::Lacking(refusal))
            }
            Ok(Err(Failure::Refused(refusal))) => Err(Left::Refused(refusal)),
            Ok(Err(Failure::Elsewhere(_))) => Err(Left::TryNext),
            Ok(Err(Failure::Lost(_))) | Err(_) => {
                self.cluster.forget_channel(address);
                Err(Left::TryNext)
            }
        }
    }

    async fn ask(
        &self,
        mut stream: VolumeStream,
        body: client_request::Body,
    ) -> Result<Body, Left> {
        let request = pb::ClientRequest {
            tag: 2,
            body: Some(body),
        };
        let _ended = stream.requests.send(request);
        let reply = tokio::time::timeout(NODE_TIMEOUT, stream.replies.message()).await;
        let Ok(Ok(Some(reply))) = reply else {
            self.cluster.forget_channel(&stream.address);
            return Err(Left::TryNext);
        };
        match reply.body {
            Some(Body::Refused(refused)) => match refusal(refused) {
                Verdict::Refused(
                    Refusal::Behind { .. } | Refusal::Unreadable | Refusal::Overloaded,
                )
                | Verdict::GoElsewhere => Err(Left::TryNext),
                Verdict::Refused(refusal @ Refusal::TreeUnavailable { .. }) => {
                    self.keep(stream);
                    Err(Left::Lacking(refusal))
                }
                Verdict::Refused(refusal) => {
                    self.keep(stream);
                    Err(Left::Refused(refusal))
                }
                Verdict::SessionOver(_) => Err(Left::TryNext),
            },
            Some(Body::NotPrimary(_)) | None => Err(Left::TryNext),
            Some(body) => {
                self.keep(stream);
                Ok(body)
            }
        }
    }

    fn take_idle(&self) -> Option<VolumeStream> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.pop()
    }

    fn keep(&self, stream: VolumeStream) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push(stream);
        }
    }
}
