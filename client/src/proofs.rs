//! Roots of a log's Merkle tree, and proofs: asked for here, verified with no server.

use mainstay_proto::v1 as pb;
use mainstay_proto::v1::client_reply::Body;
use mainstay_proto::v1::client_request;
use mainstay_proto::v1::read_tree::Proof;
use mainstay_types::Lsn;
use mainstay_types::merkle::{ConsistencyProof, InclusionProof, Leaf, TreeHash, TreeRoot};

use crate::ReadError;
use crate::log::{LogRecord, LogVolume};

impl LogRecord {
    /// What the log's Merkle tree holds at the record's position.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// # let log = client.log("ledger").open().await?;
    /// use mainstay_client::ReadLimits;
    ///
    /// let committed = log.append("debit").await?;
    /// let page = log.read(committed.lsn, ReadLimits::default()).await?;
    /// let root = log.root().await?;
    /// let proof = log.prove(committed.lsn, root.size).await?;
    /// proof.verify(&page.records[0].leaf(), &root)?;
    /// # Ok(()) });
    /// ```
    #[must_use]
    pub fn leaf(&self) -> Leaf<'_> {
        Leaf::Record {
            lsn: self.lsn,
            timestamp_us: self.timestamp_us,
            data: &self.data,
        }
    }
}

/// Proofs. What they prove, and what they do not, is in `docs/proofs.md`.
impl LogVolume {
    /// The root of the log's Merkle tree over every position that is committed: 40 bytes that stand for the whole history. Whoever keeps
    /// it can have it proved later that nothing before it was altered ([`Self::prove_consistency`]). Cancelling is safe.
    ///
    /// # Errors
    /// [`crate::Refusal::TreeUnavailable`] if the copy that is asked has no tree; or no node answered until the deadline.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// # let log = client.log("ledger").open().await?;
    /// let committed = log.append("debit").await?;
    /// let root = log.root().await?;
    /// assert!(root.size >= committed.lsn.0);
    /// println!("keep this: {root}");
    /// # Ok(()) });
    /// ```
    pub async fn root(&self) -> Result<TreeRoot, ReadError> {
        self.ask_tree(None, None).await.map(|(root, _)| root)
    }

    /// The root of the tree over the positions from 1 to `size`. Cancelling is safe.
    ///
    /// # Errors
    /// `Refused(BadRequest)` if so much is not committed; else as [`Self::root`].
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// # let log = client.log("ledger").open().await?;
    /// let root = log.root().await?;
    /// log.append("debit").await?;
    /// assert_eq!(log.root_at(root.size).await?, root);
    /// assert!(log.root_at(u64::MAX).await.is_err());
    /// # Ok(()) });
    /// ```
    pub async fn root_at(&self, size: u64) -> Result<TreeRoot, ReadError> {
        let (root, _) = self.ask_tree(Some(size), None).await?;
        (root.size == size).then_some(root).ok_or(ReadError::Misfit)
    }

    /// Proves what is at a position, against the root of size `size`: 32 bytes for each doubling of the log. Also of positions that were
    /// trimmed: a proof needs the record only to be verified. Cancelling is safe.
    ///
    /// # Errors
    /// `Refused(BadRequest)` if a tree of that size has no such position; else as [`Self::root_at`].
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// # let log = client.log("ledger").open().await?;
    /// use mainstay_client::Leaf;
    ///
    /// let committed = log.append("debit").await?;
    /// let root = log.root().await?;
    /// let proof = log.prove(committed.lsn, root.size).await?;
    /// let (lsn, timestamp_us) = (committed.lsn, committed.timestamp_us);
    /// let leaf = |data| Leaf::Record { lsn, timestamp_us, data };
    /// proof.verify(&leaf(b"debit"), &root)?;
    /// assert!(proof.verify(&leaf(b"credit"), &root).is_err());
    /// # Ok(()) });
    /// ```
    pub async fn prove(&self, lsn: Lsn, size: u64) -> Result<InclusionProof, ReadError> {
        let wanted = Proof::Lsn(lsn.0);
        let (root, path) = self.ask_tree(Some(size), Some(wanted)).await?;
        let proof = InclusionProof { lsn, size, path };
        (root.size == size)
            .then_some(proof)
            .ok_or(ReadError::Misfit)
    }

    /// Proves that the log only grew between two roots: that the first `old_size` positions are the same in both. Cancelling is safe.
    ///
    /// # Errors
    /// `Refused(BadRequest)` if `old_size` is greater; else as [`Self::root_at`].
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// # let log = client.log("ledger").open().await?;
    /// let kept = log.root().await?; // somewhere safe
    /// log.append("debit").await?;
    /// let now = log.root().await?;
    /// let proof = log.prove_consistency(kept.size, now.size).await?;
    /// proof.verify(&kept, &now)?; // nothing before `kept` was altered
    /// # Ok(()) });
    /// ```
    pub async fn prove_consistency(
        &self,
        old_size: u64,
        new_size: u64,
    ) -> Result<ConsistencyProof, ReadError> {
        let wanted = Proof::OldSize(old_size);
        let (root, path) = self.ask_tree(Some(new_size), Some(wanted)).await?;
        let proof = ConsistencyProof {
            old_size,
            new_size,
            path,
        };
        (root.size == new_size)
            .then_some(proof)
            .ok_or(ReadError::Misfit)
    }

    async fn ask_tree(
        &self,
        size: Option<u64>,
        proof: Option<Proof>,
    ) -> Result<(TreeRoot, Vec<TreeHash>), ReadError> {
        // A copy that does not know so much is not the right one to ask.
        let committed = self.committed().map(|seen| pb::AnyCommitted {
            at_least: seen.at_least.max(size.unwrap_or(0)),
        });
        let request = client_request::Body::ReadTree(pb::ReadTree {
            size,
            proof,
            committed,
        });
        let Body::Tree(tree) = self.ask(request).await? else {
            return Err(ReadError::Misfit);
        };
        let hash = |bytes: &bytes::Bytes| TreeHash::from_bytes(bytes).ok_or(ReadError::Misfit);
        let root = TreeRoot {
            size: tree.size,
            hash: hash(&tree.root)?,
        };
        self.replicas.seen.note(Lsn(root.size));
        let path = tree.path.iter().map(hash).collect::<Result<_, _>>()?;
        Ok((root, path))
    }
}
