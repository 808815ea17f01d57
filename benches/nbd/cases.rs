//! What is measured, against what, and what it should come to.

use std::fmt::Write as _;

use crate::fio::{Job, Measured};

/// One comparison.
#[derive(Debug)]
pub(crate) struct Case {
    /// Names it; cases that share one share a job.
    pub(crate) letter: char,
    /// In words.
    pub(crate) what: &'static str,
    pub(crate) job: Job,
    pub(crate) figure: Figure,
    pub(crate) reference: Reference,
    pub(crate) goal: Goal,
}

/// Bounds of ours divided by the reference, both inclusive.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

/// What of a job's results is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Figure {
    /// Operations a second.
    Ops,
    /// Median from handing in to the answer.
    P50,
    /// Bytes a second.
    Bandwidth,
}

/// What ours is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reference {
    /// Every write is synced before its answer.
    QemuWritethrough,
    /// Direct I/O through the ring; durable only when the client flushes.
    QemuNone,
    /// The file plugin, through the page cache.
    NbdkitFile,
    /// The least that a replicated write can cost: `mainstay_benches::floor`.
    Floor,
    /// A file with direct I/O, without any server.
    Disk,
}

pub(crate) const CASES: [Case; 6] = [
    Case {
        letter: 'a',
        what: "4 KiB random writes, depth 32",
        job: Job::WriteDepth32,
        figure: Figure::Ops,
        reference: Reference::QemuWritethrough,
        goal: Goal::AtLeast(1.5),
    },
    Case {
        letter: 'a',
        what: "4 KiB random writes, depth 32",
        job: Job::WriteDepth32,
        figure: Figure::Ops,
        reference: Reference::QemuNone,
        goal: Goal::AtLeast(0.5),
    },
    Case {
        letter: 'b',
        what: "4 KiB writes, flushed, 8 jobs",
        job: Job::FlushJobs8,
        figure: Figure::Ops,
        reference: Reference::QemuNone,
        goal: Goal::AtLeast(1.5),
    },
    Case {
        letter: 'c',
        what: "4 KiB random reads, depth 32",
        job: Job::ReadDepth32,
        figure: Figure::Ops,
        reference: Reference::NbdkitFile,
        goal: Goal::AtLeast(0.7),
    },
    Case {
        letter: 'd',
        what: "one 4 KiB write at a time, p50",
        job: Job::WriteDepth1,
        figure: Figure::P50,
        reference: Reference::Floor,
        goal: Goal::AtMost(1.5),
    },
    Case {
        letter: 'e',
        what: "1 MiB sequential writes, depth 8",
        job: Job::WriteLarge,
        figure: Figure::Bandwidth,
        reference: Reference::Disk,
        goal: Goal::AtLeast(0.25),
    },
];

impl Case {
    pub(crate) fn met(&self, ratio: f64) -> bool {
        match self.goal {
            Goal::AtLeast(least) => ratio >= least,
            Goal::AtMost(most) => ratio <= most,
        }
    }

    pub(crate) fn target(&self) -> String {
        match self.goal {
            Goal::AtLeast(least) => format!(">= {least}"),
            Goal::AtMost(most) => format!("<= {most}"),
        }
    }
}

impl Figure {
    pub(crate) fn of(self, measured: &Measured) -> f64 {
        match self {
            Self::Ops => measured.ops_per_second,
            Self::P50 => measured.p50_us,
            Self::Bandwidth => measured.bytes_per_second / 1e6,
        }
    }

    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Ops => "ops/s",
            Self::P50 => "us",
            Self::Bandwidth => "MB/s",
        }
    }
}

impl Reference {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::QemuWritethrough => "qemu-nbd --cache=writethrough",
            Self::QemuNone => "qemu-nbd --cache=none --aio=io_uring",
            Self::NbdkitFile => "nbdkit file",
            Self::Floor => "raw replicated write (floor)",
            Self::Disk => "the disk, direct I/O",
        }
    }
}

/// For `--list`.
pub(crate) fn list(cases: &[&Case]) -> String {
    let mut out = String::new();
    for case in cases {
        writeln!(
            out,
            "{}  {:<32}  {:<36}  {}",
            case.letter,
            case.what,
            case.reference.name(),
            case.target()
        )
        .expect("a String takes everything");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_met_at_its_bound_and_missed_beyond_it() {
        let at_least = &CASES[0];
        assert!(at_least.met(1.5) && !at_least.met(1.49));
        let at_most = &CASES[4];
        assert!(at_most.met(1.5) && !at_most.met(1.51));
        assert!(list(&CASES.iter().collect::<Vec<_>>()).contains("<= 1.5"));
    }
}
