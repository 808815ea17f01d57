//! A short run of the fuzz targets: the corpus, and seeded mutations of it. The same bytes in every run.
//!
//! Besides what the targets look at by themselves, no input may make the server allocate much, and none may keep it busy.
//! `MAINSTAY_FUZZ_RUNS` is the number of mutations of each target.

#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// Mutations of each target, unless `MAINSTAY_FUZZ_RUNS` says otherwise.
const RUNS: u64 = 2_000;
/// Of one input, in real time, on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(30);
/// What one input may make the process allocate at a time: the device, one request of the largest size on its way in and one on its
/// way out, the pipes, and the buffers of TLS.
const ALLOCATED_MAX: usize = 1 << 20;
const INPUT_BYTES_MAX: usize = 8 << 10;

/// Counts what is allocated, and the most there was.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`, and `at` came from the same allocator.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Xorshift: small, and the same for ever.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).expect("below a usize")
    }
}

type Target = fn(&[u8]);

/// Numbers at which parsers break.
const INTERESTING: [u32; 10] = [
    0,
    1,
    0x7f,
    0xff,
    0xffff,
    0x1_0000,
    0x1_0001,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
];

fn mutate(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = corpus[random.below(corpus.len())].clone();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        match random.below(7) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next().to_le_bytes()[0],
            2 => bytes.truncate(at + 1),
            3 => {
                let number = INTERESTING[random.below(INTERESTING.len())].to_be_bytes();
                for (to, from) in bytes[at..].iter_mut().zip(number) {
                    *to = from;
                }
            }
            4 => {
                let end = at + random.below(bytes.len() - at);
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            5 => {
                let other = &corpus[random.below(corpus.len())];
                let from = random.below(other.len());
                bytes.truncate(at + 1);
                bytes.extend_from_slice(&other[from..]);
            }
            _ => {
                let end = at + random.below(bytes.len() - at).min(16);
                bytes.drain(at..end);
            }
        }
        bytes.truncate(INPUT_BYTES_MAX);
    }
    bytes
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let entries = std::fs::read_dir(dir.join(target)).expect("a corpus");
    let mut paths: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    // The order of a directory is not the same everywhere.
    paths.sort();
    let inputs = paths
        .iter()
        .map(|path| std::fs::read(path).expect("an input"));
    let inputs: Vec<_> = inputs.filter(|input| !input.is_empty()).collect();
    assert!(inputs.len() >= 10, "the corpus of {target} is missing");
    inputs
}

/// Inputs are named after the replies that their requests are made for: others would be lost framing, and fuzz nothing.
fn check_negotiations() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/transmission");
    for entry in std::fs::read_dir(dir).expect("a corpus") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy();
        let option: Option<&[u8]> = match name.split('-').next() {
            Some("structured") => Some(b"IHAVEOPT\0\0\0\x08"),
            Some("extended") => Some(b"IHAVEOPT\0\0\0\x0b"),
            _ => None,
        };
        let agreed = targets::negotiation(std::fs::read(&path).expect("an input")[0]);
        let found = option.is_none_or(|option| agreed.windows(option.len()).any(|at| at == option));
        assert!(found, "{name}");
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Runs every input in a thread that is watched.
fn run(target: &str, check: Target, inputs: impl Iterator<Item = Vec<u8>> + Send + 'static) {
    let (begin, begun) = channel();
    let running = std::thread::spawn(move || {
        for input in inputs {
            begin.send(input.clone()).expect("watched");
            let before = ALLOCATED.load(Ordering::Relaxed);
            PEAK.store(before, Ordering::Relaxed);
            check(&input);
            let most = PEAK.load(Ordering::Relaxed).saturating_sub(before);
            assert!(most <= ALLOCATED_MAX, "{most} bytes allocated");
        }
    });
    let mut last = Vec::new();
    loop {
        match begun.recv_timeout(PATIENCE) {
            Ok(input) => last = input,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                panic!("{target} hangs with {}", hexadecimal(&last));
            }
        }
    }
    if let Err(panic) = running.join() {
        eprintln!("{target} fails with {}", hexadecimal(&last));
        std::panic::resume_unwind(panic);
    }
}

/// One test, because the count of allocations is that of the process.
#[test]
fn no_input_panics_hangs_or_costs_much() {
    check_negotiations();
    let runs = std::env::var("MAINSTAY_FUZZ_RUNS");
    let runs = runs.map_or(RUNS, |runs| runs.parse().expect("a number of runs"));
    let targets: [(&str, Target); 2] = [
        ("handshake", targets::handshake),
        ("transmission", targets::transmission),
    ];
    for (target, check) in targets {
        // Makes what is made once, such as a certificate, before anything is counted.
        check(&[1, 0, 0, 0, 3]);
        let corpus = corpus(target);
        let asked = targets::history::ASKED.load(Ordering::Relaxed);
        run(target, check, corpus.clone().into_iter());
        assert!(
            targets::history::ASKED.load(Ordering::Relaxed) > asked,
            "the corpus of {target} never asks what changed"
        );
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        run(
            target,
            check,
            (0..runs).map(move |_| mutate(&mut random, &corpus)),
        );
    }
}
