//! A proof as a file: everything that verifying it needs, but the root that the verifier trusts.

use std::path::Path;

use anyhow::Context as _;
use mainstay_client::{
    ConsistencyProof, InclusionProof, Leaf, LogRecord, ProofError, TreeHash, TreeRoot,
};
use mainstay_types::Lsn;
use serde::{Deserialize, Serialize};

/// The format's name and version; anything else is refused.
const FORMAT: &str = "mainstay-log-proof-1";

/// A proof about one log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProofFile {
    format: String,
    /// The log, as it was called.
    pub volume: String,
    /// What is proved.
    #[serde(flatten)]
    pub proof: Proof,
}

/// See [`ProofFile`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Proof {
    /// What is at a position.
    Inclusion {
        /// The record; none if readers are shown nothing there.
        record: Option<ProvedRecord>,
        /// The root, as the cluster told it.
        root: TreeRoot,
        /// That the root covers it.
        proof: InclusionProof,
    },
    /// That the log only grew.
    Consistency {
        /// The older root, as the cluster told it.
        old_root: TreeRoot,
        /// The newer root, as the cluster told it.
        root: TreeRoot,
        /// That the newer one begins with the older one.
        proof: ConsistencyProof,
    },
}

/// A record in a proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProvedRecord {
    /// Its position.
    pub lsn: Lsn,
    /// Its time, microseconds since 1970.
    pub timestamp_us: u64,
    /// Its bytes, two hexadecimal digits each.
    data_hex: String,
}

impl ProvedRecord {
    /// Of a record that was read.
    #[must_use]
    pub fn of(record: &LogRecord) -> Self {
        Self {
            lsn: record.lsn,
            timestamp_us: record.timestamp_us,
            data_hex: hex(&record.data),
        }
    }

    /// Its bytes.
    ///
    /// # Errors
    /// The file is not what this program writes.
    pub fn data(&self) -> anyhow::Result<Vec<u8>> {
        let digits = self.data_hex.as_bytes();
        let value = |digit: u8| char::from(digit).to_digit(16);
        let byte = |pair: &[u8]| {
            let [high, low] = pair else { return None };
            u8::try_from(value(*high)? << 4 | value(*low)?).ok()
        };
        let bytes: Option<Vec<u8>> = digits.chunks(2).map(byte).collect();
        bytes.context("`data_hex` is not pairs of hexadecimal digits")
    }
}

/// Two digits a byte.
pub(super) fn hex(data: &[u8]) -> String {
    data.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl ProofFile {
    /// Of a log.
    #[must_use]
    pub fn new(volume: &str, proof: Proof) -> Self {
        Self {
            format: FORMAT.to_owned(),
            volume: volume.to_owned(),
            proof,
        }
    }

    /// Reads one.
    ///
    /// # Errors
    /// There is no such file, or it is none.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let text = std::fs::read(path).with_context(|| format!("{shown}"))?;
        let file: Self = serde_json::from_slice(&text)
            .with_context(|| format!("{shown} is no proof that `mainstay log prove` wrote"))?;
        anyhow::ensure!(
            file.format == FORMAT,
            "{shown} has format {:?}, this program reads {FORMAT}",
            file.format
        );
        Ok(file)
    }

    /// Whether it proves what it says, to somebody who trusts `trusted`: the root of an inclusion, the older root of a consistency.
    ///
    /// # Errors
    /// The file does not hang together. The inner error is the verdict: it does not prove anything.
    pub fn verify(&self, trusted: &TreeRoot) -> anyhow::Result<Result<(), ProofError>> {
        Ok(match &self.proof {
            Proof::Inclusion { record, proof, .. } => match record {
                None => proof.verify(&Leaf::Blank { lsn: proof.lsn }, trusted),
                Some(record) => {
                    let data = record.data()?;
                    let leaf = Leaf::Record {
                        lsn: record.lsn,
                        timestamp_us: record.timestamp_us,
                        data: &data,
                    };
                    proof.verify(&leaf, trusted)
                }
            },
            Proof::Consistency { root, proof, .. } => proof.verify(trusted, root),
        })
    }

    /// The size of the root that must be trusted.
    #[must_use]
    pub fn trusted_size(&self) -> u64 {
        match &self.proof {
            Proof::Inclusion { proof, .. } => proof.size,
            Proof::Consistency { proof, .. } => proof.old_size,
        }
    }
}

/// The root that the user trusts.
#[must_use]
pub fn trusted(hash: TreeHash, size: u64) -> TreeRoot {
    TreeRoot { size, hash }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(data: &'static [u8]) -> LogRecord {
        LogRecord {
            lsn: Lsn(1),
            timestamp_us: 77,
            data: bytes::Bytes::from_static(data),
        }
    }

    #[test]
    fn a_proof_survives_being_a_file_and_is_refused_when_it_was_altered() {
        let record = record(b"de\0bit");
        let other = Leaf::Blank { lsn: Lsn(2) }.hash();
        let root = TreeRoot {
            size: 2,
            hash: TreeHash::of_node(&record.leaf().hash(), &other),
        };
        let proof = Proof::Inclusion {
            record: Some(ProvedRecord::of(&record)),
            root,
            proof: InclusionProof {
                lsn: Lsn(1),
                size: 2,
                path: vec![other],
            },
        };
        let file = ProofFile::new("ledger", proof);
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("proof.json");
        let write = |text: &str| std::fs::write(&path, text).expect("written");
        let text = serde_json::to_string_pretty(&file).expect("JSON");
        write(&text);
        let back = ProofFile::read(&path).expect("read");
        assert_eq!(back, file);
        assert_eq!(back.verify(&root).expect("whole"), Ok(()));

        write(&text.replace("6465", "6466"));
        let altered = ProofFile::read(&path).expect("read");
        assert!(altered.verify(&root).expect("whole").is_err());
        write(&text.replace("6465", "6g65"));
        let broken = ProofFile::read(&path).expect("read");
        assert!(broken.verify(&root).is_err());
        write(&text.replace("proof-1", "proof-2"));
        assert!(ProofFile::read(&path).is_err());
        write("{}");
        assert!(ProofFile::read(&path).is_err());
    }
}
