//! What is measured, against what, and what it should come to.

use std::fmt::Write as _;

use mainstay_benches::report::{Load, Row};

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
    /// For comparison only.
    None,
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

pub(crate) const CASES: [Case; 7] = [
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
    // Three copies on one disk cost that disk three times the bytes: this is what is left of it at best.
    Case {
        letter: 'e',
        what: "1 MiB sequential writes, depth 8",
        job: Job::WriteLarge,
        figure: Figure::Bandwidth,
        reference: Reference::Floor,
        goal: Goal::None,
    },
];

impl Case {
    /// `None` where there is no target.
    pub(crate) fn met(&self, ratio: f64) -> Option<bool> {
        match self.goal {
            Goal::AtLeast(least) => Some(ratio >= least),
            Goal::AtMost(most) => Some(ratio <= most),
            Goal::None => None,
        }
    }

    pub(crate) fn target(&self) -> String {
        match self.goal {
            Goal::AtLeast(least) => format!(">= {least}"),
            Goal::AtMost(most) => format!("<= {most}"),
            Goal::None => "-".to_owned(),
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

    /// The same of what the floor came to.
    pub(crate) fn of_floor(self, row: &Row) -> f64 {
        match self {
            Self::Ops => row.ops_per_second,
            Self::P50 => row.latency.p50_us,
            Self::Bandwidth => row.ops_per_second * bytes(row.load) / 1e6,
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

fn bytes(load: Load) -> f64 {
    u32::try_from(load.record_bytes).map_or(f64::INFINITY, f64::from)
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
        assert_eq!(
            [1.5, 1.49].map(|ratio| at_least.met(ratio)),
            [Some(true), Some(false)]
        );
        let at_most = &CASES[4];
        assert_eq!(
            [1.5, 1.51].map(|ratio| at_most.met(ratio)),
            [Some(true), Some(false)]
        );
        assert_eq!(CASES[6].met(0.1), None);
        assert!(list(&CASES.iter().collect::<Vec<_>>()).contains("<= 1.5"));
    }
}
