//! Directed scenarios: the seeds from 1,000 to 1,999 of each 2,000 play one of a few themes, drawn from the seed, each
//! around an order of events that swarm testing meets once in many thousands of seeds. The rest of such a scenario is
//! drawn as always, and the same properties hold.

use std::time::Duration;

use mainstay_replication::{Mistake, Rng};
use mainstay_types::{NodeId, Policy, VolumeKind};

use super::{Fault, MS, Scenario, index};

/// What a directed scenario is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Theme {
    /// Primaries that stand still or are cut off while several clients read.
    Leases,
    /// Witnesses that lose power while a promotion is due.
    Witnesses,
    /// Restarts, late reports of deaths and switchovers to and fro.
    Names,
    /// Two copies that shrink to one and grow again.
    Pair,
    /// A copy that lags and is slow to be fed, another that falls silent, and then the primary dies.
    Laggard,
    /// A long tail that never reached anybody, and a short newer one.
    Tails,
    /// Appends that come twice and late.
    Doubles,
    /// Lost and damaged copies while another one lags.
    Disks,
    /// One primary after the other dies while a copy is cut off from all others.
    Succession,
    /// Promotions that meet: members that hear some witnesses only, witnesses with slow stores.
    Orphans,
    /// A witness that missed a promotion, and a primary that has only this one and another left.
    OldNames,
    /// One witness takes the place of another while a primary is replaced.
    WitnessSets,
}

/// Of the seeds with a theme, those that end in this digit change the witnesses.
const WITNESS_SETS: u64 = 7;

const THEMES: [Theme; 11] = [
    Theme::Leases,
    Theme::Witnesses,
    Theme::Names,
    Theme::Pair,
    Theme::Laggard,
    Theme::Tails,
    Theme::Doubles,
    Theme::Disks,
    Theme::Succession,
    Theme::Orphans,
    Theme::OldNames,
];

/// The theme of a seed, if it has one.
#[must_use]
pub fn theme(seed: u64) -> Option<Theme> {
    if seed % 2_000 < 1_000 {
        return None;
    }
    if seed % 10 == WITNESS_SETS {
        return Some(Theme::WitnessSets);
    }
    let at = usize::try_from(seed % THEMES.len() as u64).ok()?;
    THEMES.get(at).copied()
}

/// The theme in which a mistake is most likely to be fatal.
#[must_use]
pub fn theme_of(mistake: Mistake) -> Option<Theme> {
    match mistake {
        Mistake::LeaseFromReceipt | Mistake::ReadAfterLease => Some(Theme::Leases),
        Mistake::NoQuietTime | Mistake::VoteNotDurable => Some(Theme::Witnesses),
        Mistake::ReleaseByNode => Some(Theme::Names),
        Mistake::GrantsWithoutNames => Some(Theme::OldNames),
        Mistake::OrphansIgnored => Some(Theme::Orphans),
        Mistake::PromotionDropsSilent => Some(Theme::Succession),
        Mistake::NoJointRule | Mistake::AckAloneBeforeShrink => Some(Theme::Pair),
        Mistake::NoSyncPoint | Mistake::CommitInherited => Some(Theme::Laggard),
        Mistake::ChoiceByLsnAlone => Some(Theme::Tails),
        Mistake::TruncateBelowCommit => Some(Theme::Doubles),
        Mistake::IncarnationIgnored | Mistake::DamageCountsAsSight => Some(Theme::Disks),
        Mistake::WitnessesInOneStep | Mistake::NewcomersBlank => Some(Theme::WitnessSets),
        _ => None,
    }
}

/// Seeds worth trying for a mistake, the most promising first.
#[must_use]
pub fn seeds_for(mistake: Mistake) -> Vec<u64> {
    let fits = |seed: &u64| theme_of(mistake).is_some() && theme(*seed) == theme_of(mistake);
    let mut out: Vec<u64> = (0..2_000).filter(fits).collect();
    out.extend((0..2_000).filter(|seed| !fits(seed)));
    out
}

/// Turns a scenario into one of this theme.
pub(super) fn direct(scenario: &mut Scenario, theme: Theme, r: &mut Rng) {
    scenario.data = 3;
    scenario.witnesses = 3;
    let mut policy = Policy::for_placement(vec![NodeId(1), NodeId(2), NodeId(3)]);
    if theme == Theme::Pair {
        scenario.data = 2;
        policy = Policy::for_placement(vec![NodeId(1), NodeId(2)]);
    }
    policy.min_copies = 1;
    scenario.volumes.truncate(1);
    for volume in &mut scenario.volumes {
        // Only one client of an attachment writes, and several are wanted.
        volume.kind = VolumeKind::Log;
        volume.clients = 3;
        volume.policy = policy.clone();
    }
    // One client goes elsewhere at once; others stay with whom they know.
    scenario.patience_ns = Some([100 * MS, 3_000 * MS, 600 * MS]);
    let lease = Duration::from_millis([300, 800][index(r, 2)]);
    scenario.lease.lease = lease;
    scenario.lease.lease_longest = lease;
    scenario.lease.beat = Duration::from_millis(50);
    scenario.clock_ppm = 10_000;
    scenario.pace_ns = MS * [4, 10][index(r, 2)];
    scenario.volume.member.drop_after = Duration::from_millis(500);
    scenario.net.delay_max_ns = MS * [1, 5, 20][index(r, 3)];
    scenario.net.loss_ppm = scenario.net.loss_ppm.min(20_000);
    match theme {
        Theme::Witnesses => scenario.store_ns = MS * [1, 5, 10][index(r, 3)],
        Theme::Names => {
            scenario.reports = 4;
            scenario.report_ns = MS * [50, 600, 1_500][index(r, 3)];
        }
        Theme::Pair => scenario.store_ns = MS * [2, 10][index(r, 2)],
        Theme::Laggard => {
            scenario.window = 16;
            scenario.volume.feed_bytes_max = 512;
            scenario.volume.member.in_flight_bytes_max = 2_048;
            scenario.net.delay_max_ns = 20 * MS;
        }
        Theme::Tails => scenario.window = 16,
        Theme::Doubles => {
            scenario.net.streams = false;
            scenario.net.double_ppm = 300_000;
        }
        Theme::Orphans => scenario.store_ns = MS * [10, 40, 80][index(r, 3)],
        Theme::OldNames => {
            scenario.lease.lease = Duration::from_millis(300);
            scenario.lease.lease_longest = Duration::from_millis(300);
            scenario.net.delay_max_ns = MS;
            scenario.reports = 0;
        }
        Theme::WitnessSets => {
            scenario.spare_witnesses = 2;
            scenario.net.delay_max_ns = MS;
            scenario.store_ns = MS;
        }
        Theme::Leases | Theme::Disks | Theme::Succession => {}
    }
    scenario.faults.clear();
    let mut at = 600 * MS;
    scenario.faults_end = MS * (4_000 + r.below(3_000));
    while at + 500 * MS < scenario.faults_end {
        let combination = combination(theme, r);
        let span = combination.iter().map(|(after, _)| *after).max();
        let placed = combination
            .into_iter()
            .map(|(after, fault)| (at + after, fault));
        scenario.faults.extend(placed);
        at += span.unwrap_or(0) + MS * (900 + r.below(1_200));
    }
    scenario.faults.sort_by_key(|(at, _)| *at);
}

/// Faults that belong together, and how long after the first each strikes.
fn combination(theme: Theme, r: &mut Rng) -> Vec<(u64, Fault)> {
    let mode = u8::try_from(r.below(3)).unwrap_or(0);
    let other = u32::try_from(r.below(2)).unwrap_or(0);
    let witness = u32::try_from(r.below(3)).unwrap_or(0);
    let long = MS * (1_000 + r.below(1_500));
    let mut ms = |from: u64, below: u64| MS * from + r.below(MS * (below - from));
    match theme {
        Theme::Leases => match mode {
            0 => vec![(0, Fault::PausePrimary(ms(400, 2_000)))],
            // What the witnesses granted before waits in the sockets of a primary that wakes up alone.
            1 => vec![
                (0, Fault::PausePrimary(ms(350, 1_300))),
                (ms(10, 60), Fault::IsolatePrimary(0, long)),
            ],
            _ => vec![(
                0,
                Fault::IsolatePrimary(u8::try_from(witness).unwrap_or(0), ms(600, 2_500)),
            )],
        },
        Theme::WitnessSets => {
            // A witness takes another one's place (the second choice of three is "goes", the third "is replaced").
            let change = Fault::ChangeWitnesses(1 + other, 2 + 3 * witness);
            match mode {
                // The old primary keeps two of the old witnesses, the new set goes on without them.
                0 | 1 => vec![
                    (0, change),
                    (ms(2, 60), Fault::PrimaryWith(1 | 1 << (1 + other), long)),
                ],
                // One witness misses a promotion, the next one comes right after the change.
                _ => {
                    let changed = ms(300, 1_500);
                    vec![
                        (0, Fault::CutWitness(witness, MS * 1_400)),
                        (MS, Fault::KillPrimary(ms(5, 60))),
                        (MS * 1_400 + changed, change),
                        (
                            MS * 1_400 + changed + ms(900, 2_500),
                            Fault::KillPrimary(ms(5, 60)),
                        ),
                    ]
                }
            }
        }
        Theme::Witnesses => {
            let first = match other {
                0 => Fault::IsolatePrimary(0, long),
                _ => Fault::KillPrimary(long),
            };
            let late = if mode == 0 { 1_200 } else { 60 };
            let mut out = vec![(0, first)];
            out.extend((0..3).map(|w| (ms(1, late), Fault::WitnessCrash(w, ms(1, 20)))));
            out
        }
        Theme::Names => match mode + u8::from(mode == 0 && other == 0) * 3 {
            3 => {
                let late = ms(900, 1_600);
                vec![
                    (0, Fault::KillPrimary(ms(1, 12))),
                    (late, Fault::LateReport),
                    (late + ms(0, 4), Fault::IsolatePrimary(0, long)),
                ]
            }
            0 => vec![
                (0, Fault::KillPrimary(ms(5, 60))),
                (ms(300, 1_800), Fault::IsolatePrimary(0, long)),
            ],
            1 => vec![
                (0, Fault::Handover(0, 1 + other)),
                (ms(100, 400), Fault::Handover(0, 2 - other)),
                (ms(400, 900), Fault::IsolatePrimary(0, long)),
            ],
            _ => vec![
                (0, Fault::KillPrimary(ms(5, 60))),
                (ms(100, 900), Fault::Handover(0, 1 + other)),
                (ms(200, 1_200), Fault::PausePrimary(ms(100, 900))),
            ],
        },
        Theme::Pair => vec![
            (0, Fault::Replica(0, ReplicaFault::Isolated, ms(500, 1_500))),
            (ms(500, 2_500), Fault::KillPrimary(ms(100, 1_000))),
        ],
        Theme::Laggard => {
            let lag = ms(200, 480);
            let shrunk = lag + ms(450, 800);
            vec![
                (0, Fault::Replica(other, ReplicaFault::Cut, lag)),
                (
                    lag,
                    Fault::Replica(1 - other, ReplicaFault::Isolated, 2 * long),
                ),
                (shrunk, Fault::KillPrimary(long)),
            ]
        }
        Theme::Tails => {
            // The old primary comes back when the new one dies, and not before.
            let alone = ms(600, 1_600);
            vec![
                (0, Fault::IsolatePrimary(0, alone)),
                (alone - ms(1, 40), Fault::KillPrimary(long)),
            ]
        }
        Theme::Doubles => vec![(0, Fault::KillPrimary(ms(100, 1_000)))],
        Theme::Disks => {
            if witness == 0 {
                // Only the primary and this copy have the newest entries; then this one has them no more.
                let what = match mode {
                    0 => ReplicaFault::DiskLost,
                    _ => ReplicaFault::RotUncopied,
                };
                let struck = ms(100, 300);
                return vec![
                    (0, Fault::Replica(other, ReplicaFault::Stranded, long)),
                    (struck, Fault::Replica(1 - other, what, 0)),
                    (struck + ms(1, 30), Fault::KillPrimary(long)),
                ];
            }
            if witness == 1 {
                return vec![
                    (0, Fault::Replica(other, ReplicaFault::DiskLost, 0)),
                    (
                        ms(1, 600),
                        Fault::Replica(1 - other, ReplicaFault::Stranded, long),
                    ),
                ];
            }
            let what = match mode {
                0 => ReplicaFault::DiskLost,
                _ => ReplicaFault::Rot,
            };
            vec![
                (0, Fault::Replica(other, what, 0)),
                (
                    ms(1, 400),
                    Fault::Replica(1 - other, ReplicaFault::Cut, ms(100, 900)),
                ),
                (ms(40, 1_200), Fault::KillPrimary(long)),
            ]
        }
        Theme::Succession => {
            let (first, second) = (ms(50, 300), ms(500, 1_600));
            vec![
                (
                    0,
                    Fault::Replica(other, ReplicaFault::Stranded, 2 * long + second),
                ),
                (first, Fault::KillPrimary(long + second)),
                (first + second, Fault::KillPrimary(long)),
            ]
        }
        Theme::Orphans => vec![
            (
                0,
                Fault::Replica(
                    other,
                    ReplicaFault::CutWitnesses(7 ^ (1 << witness)),
                    ms(600, 1_600),
                ),
            ),
            (ms(1, 100), Fault::KillPrimary(long + MS * 500)),
            (ms(200, 1_100), Fault::WitnessPause(witness, ms(100, 400))),
        ],
        Theme::OldNames => {
            let (old, lost) = (3 + witness, 3 + (witness + 1) % 3);
            let third = 3 + (witness + 2) % 3;
            let cut = ms(900, 1_300);
            let again = ms(310, 420);
            vec![
                (0, Fault::Cut(old, lost, cut + again)),
                (0, Fault::Cut(old, third, cut + again)),
                (ms(1, 20), Fault::KillPrimary(ms(5, 60))),
                (cut, Fault::CutPrimary(1 << (lost - 3), long)),
            ]
        }
    }
}

/// What strikes a copy that is not the primary's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaFault {
    /// Nothing passes between it and the primary.
    Cut,
    /// Nothing passes between it and anybody.
    Isolated,
    /// Its disk is replaced by a blank one.
    DiskLost,
    /// A byte of its log rots, and the process restarts.
    Rot,
    /// Nothing passes between it and the other data nodes.
    Stranded,
    /// Nothing passes between it and the witnesses of this mask.
    CutWitnesses(u32),
    /// An entry that another copy lacks rots, and the process restarts.
    RotUncopied,
}
