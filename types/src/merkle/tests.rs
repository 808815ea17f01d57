//! The vectors of Certificate Transparency, and the recursive definitions of RFC 6962 as a model.

use std::ops::Range;

use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::*;
use crate::Lsn;

/// The leaves, roots and proofs with which implementations of Certificate Transparency test themselves.
const LEAVES: [&str; 8] = [
    "",
    "00",
    "10",
    "2021",
    "3031",
    "40414243",
    "5051525354555657",
    "606162636465666768696a6b6c6d6e6f",
];
const ROOTS: [&str; 8] = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
];
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const N96: &str = "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7";
const N5F: &str = "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e";
const N6B: &str = "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4";
const NBC: &str = "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b";
const NCA: &str = "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0";
const N0E: &str = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a";

fn hash(text: &str) -> TreeHash {
    text.parse().expect("64 digits")
}

fn bytes(text: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal");
    (0..text.len()).step_by(2).map(digit).collect()
}

/// Every node of a tree, in the order of their completion, as a store keeps them.
#[derive(Default)]
struct Store {
    peaks: Peaks,
    nodes: Vec<TreeHash>,
}

impl Store {
    fn of(leaves: impl IntoIterator<Item = TreeHash>) -> Self {
        let mut store = Self::default();
        for leaf in leaves {
            store.push(leaf);
        }
        store
    }

    fn push(&mut self, leaf: TreeHash) {
        let nodes = &mut self.nodes;
        self.peaks.push(leaf, |node| nodes.push(*node));
    }

    fn path(&self, subtrees: &[Subtree]) -> Vec<TreeHash> {
        let node = |node: &Node| self.nodes[usize::try_from(node.place()).expect("small")];
        let of = |subtree: &Subtree| {
            let nodes: Vec<_> = subtree.nodes().iter().map(node).collect();
            TreeHash::above(&nodes).expect("no subtree is empty")
        };
        subtrees.iter().map(of).collect()
    }

    fn inclusion(&self, lsn: u64, size: u64) -> InclusionProof {
        let path = inclusion_path(lsn - 1, size).expect("inside");
        InclusionProof {
            lsn: Lsn(lsn),
            size,
            path: self.path(&path),
        }
    }

    fn consistency(&self, old_size: u64, new_size: u64) -> ConsistencyProof {
        let path = consistency_path(old_size, new_size).expect("grows");
        ConsistencyProof {
            old_size,
            new_size,
            path: self.path(&path),
        }
    }

    fn root(&self, size: u64) -> TreeRoot {
        let node = |node: &Node| self.nodes[usize::try_from(node.place()).expect("small")];
        let hashes = Peaks::nodes(size).iter().map(node).collect();
        Peaks::new(size, hashes)
            .expect("one hash for each bit")
            .root()
    }
}

/// Section 2.1 of RFC 6962, word for word.
fn mth(leaves: &[TreeHash]) -> TreeHash {
    match leaves {
        [] => TreeHash(Sha256::digest([]).into()),
        [leaf] => *leaf,
        _ => {
            let k = leaves.len().next_power_of_two() / 2;
            TreeHash::of_node(&mth(&leaves[..k]), &mth(&leaves[k..]))
        }
    }
}

/// `PATH` of section 2.1.1.
fn path(m: usize, leaves: &[TreeHash]) -> Vec<TreeHash> {
    if leaves.len() <= 1 {
        return Vec::new();
    }
    let k = leaves.len().next_power_of_two() / 2;
    let (mut below, beside) = if m < k {
        (path(m, &leaves[..k]), mth(&leaves[k..]))
    } else {
        (path(m - k, &leaves[k..]), mth(&leaves[..k]))
    };
    below.push(beside);
    below
}

/// `SUBPROOF` of section 2.1.2.
fn subproof(m: usize, leaves: &[TreeHash], known: bool) -> Vec<TreeHash> {
    if m == leaves.len() {
        return if known { Vec::new() } else { vec![mth(leaves)] };
    }
    let k = leaves.len().next_power_of_two() / 2;
    let (mut below, beside) = if m <= k {
        (subproof(m, &leaves[..k], known), mth(&leaves[k..]))
    } else {
        (subproof(m - k, &leaves[k..], false), mth(&leaves[..k]))
    };
    below.push(beside);
    below
}

fn numbered(count: u64) -> Vec<TreeHash> {
    let leaf = |number: u64| TreeHash::of_leaf(&number.to_be_bytes());
    (0..count).map(leaf).collect()
}

fn at(size: u64, leaves: &[TreeHash]) -> TreeRoot {
    let size_of = usize::try_from(size).expect("small");
    TreeRoot {
        size,
        hash: mth(&leaves[..size_of]),
    }
}

#[test]
fn the_vectors_of_certificate_transparency_hold() {
    let leaves = LEAVES.map(|leaf| TreeHash::of_leaf(&bytes(leaf)));
    let store = Store::of(leaves);
    assert_eq!(store.root(0).hash, hash(EMPTY));
    assert_eq!(Peaks::default().root().hash, hash(EMPTY));
    for (size, root) in (1..).zip(ROOTS) {
        assert_eq!(store.root(size).hash, hash(root), "size {size}");
    }
    assert_eq!(store.peaks.root(), store.root(8));
    for (lsn, size, path) in [
        (1, 1, vec![]),
        (1, 8, vec![N96, N5F, N6B]),
        (6, 8, vec![NBC, NCA, ROOTS[3]]),
        (3, 3, vec![ROOTS[1]]),
        (2, 5, vec![ROOTS[0], N5F, NBC]),
    ] {
        let path: Vec<_> = path.into_iter().map(hash).collect();
        assert_eq!(store.inclusion(lsn, size).path, path, "{lsn} in {size}");
    }
    for (old, new, path) in [
        (1, 1, vec![]),
        (1, 8, vec![N96, N5F, N6B]),
        (6, 8, vec![N0E, NCA, ROOTS[3]]),
        (2, 5, vec![N5F, NBC]),
    ] {
        let path: Vec<_> = path.into_iter().map(hash).collect();
        assert_eq!(store.consistency(old, new).path, path, "{old} to {new}");
    }
}

#[test]
fn a_leaf_is_the_hash_of_what_is_documented() {
    let data = b"debit";
    let record = Leaf::Record {
        lsn: Lsn(0x0102),
        timestamp_us: 0x0304,
        data,
    };
    let content = b"\x01\0\0\0\0\0\0\x01\x02\0\0\0\0\0\0\x03\x04debit";
    assert_eq!(record.hash(), TreeHash::of_leaf(content));
    let digest: [u8; 32] = Sha256::digest([b"\0".as_slice(), content].concat()).into();
    assert_eq!(record.hash(), TreeHash(digest));
    let blank = Leaf::Blank { lsn: Lsn(0x0102) };
    let content = b"\0\0\0\0\0\0\0\x01\x02";
    assert_eq!(blank.hash(), TreeHash::of_leaf(content));
}

#[test]
fn nodes_lie_where_the_order_of_their_completion_puts_them() {
    let store = Store::of(numbered(100));
    assert_eq!(store.nodes.len() as u64, Node::count(100));
    let leaves = numbered(100);
    for level in 0..7 {
        for index in 0..100_usize >> level {
            let (start, len) = (index << level, 1 << level);
            let index = index as u64;
            let node = Node { level, index };
            let place = usize::try_from(node.place()).expect("small");
            assert_eq!(store.nodes[place], mth(&leaves[start..start + len]));
        }
    }
}

#[test]
fn every_small_tree_agrees_with_the_recursive_definitions() {
    let leaves = numbered(33);
    let store = Store::of(leaves.clone());
    for size in 0..=33_u64 {
        let root = at(size, &leaves);
        let up_to = &leaves[..usize::try_from(size).expect("small")];
        assert_eq!(store.root(size), root);
        for lsn in 1..=size {
            let index = usize::try_from(lsn - 1).expect("small");
            let proof = store.inclusion(lsn, size);
            assert_eq!(proof.path, path(index, up_to), "{lsn} in {size}");
            assert_eq!(proof.root_from(leaves[index]), Ok(root.hash));
        }
        for old in 0..=size {
            let proof = store.consistency(old, size);
            if old > 0 {
                let m = usize::try_from(old).expect("small");
                assert_eq!(proof.path, subproof(m, up_to, true), "{old} to {size}");
            }
            assert_eq!(proof.verify(&at(old, &leaves), &root), Ok(()));
        }
    }
}

#[test]
fn hashes_are_read_from_text_or_refused() {
    let text = ROOTS[7];
    assert_eq!(hash(text).to_string(), text);
    assert_eq!(hash(&text.to_uppercase()), hash(text));
    for bad in ["", &text[1..], &format!("{text}0"), &text.replace('5', "g")] {
        assert_eq!(bad.parse::<TreeHash>(), Err(HashError), "{bad}");
    }
    let wide = "é".repeat(32);
    assert_eq!(wide.parse::<TreeHash>(), Err(HashError));
    let json = serde_json::to_string(&hash(text)).expect("json");
    assert_eq!(json, format!("\"{text}\""));
    assert_eq!(
        serde_json::from_str::<TreeHash>(&json).expect("json"),
        hash(text)
    );
}

fn altered(hash: TreeHash, bit: usize) -> TreeHash {
    let mut bytes = hash.0;
    bytes[bit / 8 % 32] ^= 1 << (bit % 8);
    TreeHash(bytes)
}

fn path_of(hashes: Vec<[u8; 32]>) -> Vec<TreeHash> {
    hashes.into_iter().map(TreeHash).collect()
}

fn range() -> impl Strategy<Value = Range<u64>> {
    (0..400_u64, 0..400_u64).prop_map(|(a, b)| a.min(b)..a.max(b))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn larger_trees_agree_too(sizes in range(), pick in 0..400_u64) {
        let leaves = numbered(sizes.end);
        let store = Store::of(leaves.clone());
        prop_assert_eq!(store.peaks.root(), at(sizes.end, &leaves));
        let proof = store.consistency(sizes.start, sizes.end);
        prop_assert_eq!(proof.verify(&at(sizes.start, &leaves), &at(sizes.end, &leaves)), Ok(()));
        if sizes.end > 0 {
            let lsn = pick % sizes.end + 1;
            let index = usize::try_from(lsn - 1).expect("small");
            let proof = store.inclusion(lsn, sizes.end);
            prop_assert_eq!(&proof.path, &path(index, &leaves));
            prop_assert_eq!(proof.root_from(leaves[index]), Ok(at(sizes.end, &leaves).hash));
        }
    }

    #[test]
    fn an_altered_record_proof_root_or_size_is_refused(
        size in 1..200_u64, pick in 0..200_u64, bit in 0..256_usize, other in 0..220_u64,
    ) {
        let lsn = pick % size + 1;
        let record = |number: u64, data| Leaf::Record { lsn: Lsn(number), timestamp_us: number, data };
        let store = Store::of((1..=size).map(|number| record(number, b"x").hash()));
        let (root, good) = (store.root(size), store.inclusion(lsn, size));
        let leaf = record(lsn, b"x");
        prop_assert_eq!(good.verify(&leaf, &root), Ok(()));
        prop_assert!(good.verify(&record(lsn, b"y"), &root).is_err(), "accepted");
        prop_assert!(good.verify(&Leaf::Blank { lsn: Lsn(lsn) }, &root).is_err(), "accepted");
        let later = Leaf::Record { lsn: Lsn(lsn), timestamp_us: lsn + 1, data: b"x" };
        prop_assert!(good.verify(&later, &root).is_err(), "accepted");
        let bad_root = TreeRoot { hash: altered(root.hash, bit), ..root };
        prop_assert!(good.verify(&leaf, &bad_root).is_err(), "accepted");
        for at in 0..good.path.len() {
            let mut bad = good.clone();
            bad.path[at] = altered(bad.path[at], bit);
            prop_assert!(bad.verify(&leaf, &root).is_err(), "accepted");
            bad.path.remove(at);
            prop_assert!(bad.verify(&leaf, &root).is_err(), "accepted");
        }
        let mut longer = good.clone();
        longer.path.push(root.hash);
        prop_assert!(longer.verify(&leaf, &root).is_err(), "accepted");
        if other != size {
            prop_assert!(good.verify(&leaf, &TreeRoot { size: other, ..root }).is_err(), "accepted");
        }
        if other != lsn {
            // The record's own number is in its leaf: a proof cannot be moved to another position.
            let moved = InclusionProof { lsn: Lsn(other), ..good.clone() };
            prop_assert!(moved.verify(&leaf, &root).is_err(), "accepted");
            prop_assert!(moved.verify(&record(other, b"x"), &root).is_err(), "accepted");
        }
    }

    #[test]
    fn an_altered_consistency_proof_is_refused(
        sizes in range(), bit in 0..256_usize, changed in 0..400_u64,
    ) {
        prop_assume!(sizes.start > 0 && sizes.start < sizes.end);
        let leaves = numbered(sizes.end);
        let store = Store::of(leaves.clone());
        let (old, new) = (at(sizes.start, &leaves), at(sizes.end, &leaves));
        let good = store.consistency(sizes.start, sizes.end);
        prop_assert!(good.verify(&TreeRoot { hash: altered(old.hash, bit), ..old }, &new).is_err(), "accepted");
        prop_assert!(good.verify(&old, &TreeRoot { hash: altered(new.hash, bit), ..new }).is_err(), "accepted");
        for at in 0..good.path.len() {
            let mut bad = good.clone();
            bad.path[at] = altered(bad.path[at], bit);
            prop_assert!(bad.verify(&old, &new).is_err(), "accepted");
            bad.path.remove(at);
            prop_assert!(bad.verify(&old, &new).is_err(), "accepted");
        }
        // A history in which one old record was altered has no proof that fits the old root.
        let mut forged = leaves.clone();
        let place = usize::try_from(changed % sizes.start).expect("small");
        forged[place] = altered(forged[place], bit);
        let other = Store::of(forged.clone());
        let proof = other.consistency(sizes.start, sizes.end);
        prop_assert!(proof.verify(&old, &at(sizes.end, &forged)).is_err(), "accepted");
    }

    #[test]
    fn proofs_of_any_bytes_are_refused_without_a_panic(
        lsn: u64, size: u64, other: u64, hashes in proptest::collection::vec(any::<[u8; 32]>(), 0..70),
    ) {
        let root = TreeRoot { size, hash: TreeHash([7; 32]) };
        let leaf = Leaf::Blank { lsn: Lsn(lsn) };
        let path = path_of(hashes);
        let inclusion = InclusionProof { lsn: Lsn(lsn), size, path: path.clone() };
        prop_assert!(inclusion.verify(&leaf, &root).is_err(), "accepted");
        let old = TreeRoot { size: other, hash: TreeHash([8; 32]) };
        let consistency = ConsistencyProof { old_size: other, new_size: size, path };
        prop_assert!(consistency.verify(&old, &root).is_err(), "accepted");
        let _no_panic = (inclusion_path(lsn, size), consistency_path(other, size), Peaks::nodes(size));
    }
}

/// A leaf of `len` bytes that no other number gives.
fn record(number: u64, data: &[u8]) -> Leaf<'_> {
    Leaf::Record {
        lsn: Lsn(number + 1),
        timestamp_us: number * 7,
        data,
    }
}

proptest! {
    #[test]
    fn leaves_side_by_side_have_the_hashes_of_each_alone(
        lengths in prop::collection::vec(prop_oneof![0_usize..200, Just(16_300), Just(16_500)], 0..20),
    ) {
        let records: Vec<Vec<u8>> = lengths.iter().map(|len| vec![0xa5; *len]).collect();
        let mut together = LeafHashes::default();
        let mut alone = Vec::new();
        for (number, data) in (0..).zip(&records) {
            together.add(&record(number, data));
            let head = [&[0, 1][..], &(number + 1).to_be_bytes(), &(number * 7).to_be_bytes()].concat();
            let digest: [u8; 32] = Sha256::digest([&head[..], data].concat()).into();
            alone.push(TreeHash(digest));
        }
        prop_assert_eq!(together.finish(), alone);
    }

    #[test]
    fn leaves_pushed_together_make_the_nodes_of_leaves_pushed_one_by_one(
        pushes in prop::collection::vec(0_u64..70, 1..8),
    ) {
        let mut store = Store::default();
        let (mut peaks, mut nodes) = (Peaks::default(), Vec::new());
        for count in pushes {
            let first = peaks.size();
            let leaves: Vec<_> = (first..first + count).map(|number| record(number, b"x").hash()).collect();
            for leaf in &leaves {
                store.push(*leaf);
            }
            nodes.extend(peaks.push_all(&leaves));
            prop_assert_eq!(&peaks, &store.peaks);
            prop_assert_eq!(&nodes, &store.nodes);
        }
    }
}
