//! SHA-256 of several messages side by side.
//!
//! Each round of the hash waits for the one before, and a processor with instructions for it could do more meanwhile. Messages that
//! take turns block by block lie close enough together for it to work on several: 275 bytes took 118 ns instead of 178 (Zen 5). The padding is that of FIPS 180-4, section 5.1.1.

use sha2::{Digest, Sha256, compress256};

use super::TreeHash;

/// Two gain most of it; more than four, nothing.
const LANES: usize = 4;

const BLOCK: usize = 64;

/// What is longer is hashed by itself, without being copied: it would gain little.
const TOGETHER_MAX: usize = 16 << 10;

/// FIPS 180-4, section 5.3.3.
const INITIAL: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// Hashes of messages, in the order in which they are added.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    /// The messages that wait for others, padded.
    padded: [Vec<u8>; LANES],
    waiting: usize,
    done: Vec<TreeHash>,
}

impl Lanes {
    /// Adds the message that these parts are together.
    pub(super) fn add(&mut self, parts: &[&[u8]]) {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        if len > TOGETHER_MAX {
            self.hash();
            let mut hash = Sha256::new();
            parts.iter().for_each(|part| hash.update(part));
            self.done.push(TreeHash(hash.finalize().into()));
            return;
        }
        let padded = &mut self.padded[self.waiting];
        padded.clear();
        parts.iter().for_each(|part| padded.extend_from_slice(part));
        padded.push(0x80);
        padded.resize((len + 9).next_multiple_of(BLOCK) - 8, 0);
        padded.extend_from_slice(&(len as u64 * 8).to_be_bytes());
        self.waiting += 1;
        if self.waiting == LANES {
            self.hash();
        }
    }

    /// The hashes of all that was added.
    pub(super) fn finish(mut self) -> Vec<TreeHash> {
        self.hash();
        self.done
    }

    fn hash(&mut self) {
        let messages = &self.padded[..self.waiting];
        let mut states = [INITIAL; LANES];
        let longest = messages.iter().map(Vec::len).max().unwrap_or(0);
        for at in 0..longest / BLOCK {
            for (state, message) in states.iter_mut().zip(messages) {
                let (blocks, _) = message.as_chunks::<BLOCK>();
                if let Some(block) = blocks.get(at) {
                    compress256(state, std::slice::from_ref(block.into()));
                }
            }
        }
        for state in &states[..self.waiting] {
            let mut hash = [0; 32];
            for (bytes, word) in hash.as_chunks_mut::<4>().0.iter_mut().zip(state) {
                *bytes = word.to_be_bytes();
            }
            self.done.push(TreeHash(hash));
        }
        self.waiting = 0;
    }
}
