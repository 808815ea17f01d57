//! From a seed to a cluster and a schedule of faults. Swarm testing (Groce and others, 2012): each seed draws a random
//! subset of the kinds of fault, with its own rates, so that rare kinds are not drowned by common ones.

use std::time::Duration;

use mainstay_replication::{HoldDownConfig, LeaseConfig, MemberConfig, Mistakes, Rng};
use mainstay_types::{AckRule, NodeId, Policy, VolumeKind};
use mainstay_volume::VolumeConfig;

use crate::disk::DiskSpeed;
use crate::net::NetConfig;

pub mod directed;

pub use directed::ReplicaFault;

/// Of the seeds without a theme, one in so many has a freeze of minutes.
const LONG_FREEZE_ONE_IN: u64 = 40;

/// And one in so many has other witnesses in the end.
const CHANGES_ONE_IN: u64 = 4;

/// In one in so many, reads rely on no lease.
const CONFIRMS_ONE_IN: u64 = 16;

/// A day in milliseconds.
const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

/// A millisecond in nanoseconds.
pub const MS: u64 = 1_000_000;

/// A kind of fault, with whom it strikes. Indices are taken modulo what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Loss of power of a data node, back after so long.
    PowerLoss(u32, u64),
    /// Loss of power of every node at once, witnesses too, back after so long.
    PowerLossAll(u64),
    /// The process of a data node is killed; its supervisor sees it.
    Kill(u32, u64),
    /// A witness loses power.
    WitnessCrash(u32, u64),
    /// A process stands still for so long.
    Pause(u32, u64),
    /// A witness stands still for so long.
    WitnessPause(u32, u64),
    /// Nothing passes from one node to another, for so long.
    CutOneWay(u32, u32, u64),
    /// Nothing passes between two nodes, for so long.
    Cut(u32, u32, u64),
    /// A node is cut off from all others, for so long; 0 both ways, 1 hears nothing, 2 says nothing.
    Isolate(u32, u8, u64),
    /// The nodes are split in two halves by this mask, for so long.
    Split(u32, u64),
    /// Data nodes are cut off from each other by this mask, not from the witnesses.
    SplitData(u32, u64),
    /// A connection breaks.
    Reset(u32, u32),
    /// A clock runs at another rate, in parts per million.
    ClockRate(u32, i64),
    /// A wall clock jumps, by milliseconds.
    WallJump(u32, i64),
    /// The nth write or sync fails.
    DiskError(u32, bool, u64),
    /// The disk is full for so long.
    DiskFull(u32, u64),
    /// The disk hangs for so long.
    DiskHang(u32, u64),
    /// A byte of the log rots, and the process restarts.
    Rot(u32),
    /// The disk is replaced by a blank one.
    LoseDisk(u32),
    /// An operator moves the primary.
    Handover(u32, u32),
    /// The newest primary's process is killed.
    KillPrimary(u64),
    /// The newest primary loses its power.
    PowerLossPrimary(u64),
    /// The newest primary stands still.
    PausePrimary(u64),
    /// The newest primary is cut off; as `Isolate`.
    IsolatePrimary(u8, u64),
    /// The newest primary is cut off from data nodes or from witnesses only.
    StrandPrimary(bool, u64),
    /// The newest primary is cut off from all data nodes, and from the witnesses of this mask.
    CutPrimary(u32, u64),
    /// An operator asks a witness for other witnesses: one comes, one goes, or one takes the place of another.
    ChangeWitnesses(u32, u32),
    /// A witness is cut off from all others, for so long.
    CutWitness(u32, u64),
    /// A witness loses its store, and waits with a blank one from then on.
    LoseWitnessStore(u32),
    /// The newest primary and the witnesses of this mask are cut off from everybody else, for so long.
    PrimaryWith(u32, u64),
    /// The supervisor's report of the process before the newest primary's, on the same node, comes only now.
    LateReport,
    /// One of the data nodes beside the newest primary, counted from it, for so long.
    Replica(u32, ReplicaFault, u64),
}

/// One volume.
#[derive(Debug, Clone)]
pub struct VolumeSetup {
    /// Its kind.
    pub kind: VolumeKind,
    /// Its policy.
    pub policy: Policy,
    /// Clients.
    pub clients: u32,
}

/// A cluster, its load and its faults.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// The seed it came from.
    pub seed: u64,
    /// Data nodes.
    pub data: u32,
    /// Witnesses.
    pub witnesses: u32,
    /// Witnesses that wait to be invited.
    pub spare_witnesses: u32,
    /// Volumes.
    pub volumes: Vec<VolumeSetup>,
    /// The network.
    pub net: NetConfig,
    /// The disks.
    pub disk: DiskSpeed,
    /// Longest write of a witness's record.
    pub store_ns: u64,
    /// Of volumes.
    pub volume: VolumeConfig,
    /// Of leases.
    pub lease: LeaseConfig,
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// Mean time between two operations of a client.
    pub pace_ns: u64,
    /// Mutations in flight.
    pub window: usize,
    /// Out of four deaths, the supervisor reports so many.
    pub reports: u64,
    /// Longest way of such a report.
    pub report_ns: u64,
    /// Faults and when.
    pub faults: Vec<(u64, Fault)>,
    /// When they end.
    pub faults_end: u64,
    /// Greatest clock error.
    pub clock_ppm: u64,
    /// How long each client waits before it tries elsewhere, in turn; drawn for each if none.
    pub patience_ns: Option<[u64; 3]>,
}

impl Scenario {
    /// The scenario of a seed.
    #[must_use]
    pub fn new(seed: u64, mistakes: Mistakes) -> Self {
        let mut rng = Rng::new(seed ^ 0x6d61_696e_7374_6179);
        let r = &mut rng;
        let data = [3, 3, 3, 3, 2, 2, 4, 5, 1][index(r, 9)];
        let witnesses = [3, 3, 3, 3, 1, 5, 2, 4][index(r, 8)];
        let volume_count = if r.below(6) == 0 { 2 } else { 1 };
        let volumes = (0..volume_count).map(|_| volume(r, data)).collect();
        let faults_end = MS * (2_000 + r.below(6_000));
        let mut this = Self {
            seed,
            data,
            witnesses,
            spare_witnesses: 0,
            volumes,
            net: net(r),
            disk: DiskSpeed {
                operation_ns: 20_000 + r.below(300_000),
                sync_ns: [200_000, 1_000_000, 5_000_000][index(r, 3)],
                slow_one_in: [0, 0, 200][index(r, 3)],
            },
            store_ns: [100_000, 2_000_000, 10_000_000][index(r, 3)],
            volume: volume_config(r, mistakes),
            lease: LeaseConfig {
                // Long enough to be seen, and short enough for the time in which writes must resume at the end.
                hold_down: HoldDownConfig {
                    longest: Duration::from_secs(2),
                    ..HoldDownConfig::default()
                },
                mistakes,
                ..LeaseConfig::default()
            },
            segment_bytes: [8_192, 16_384, 65_536][index(r, 3)],
            pace_ns: MS * [2, 5, 10, 30][index(r, 4)],
            window: [1, 4, 16][index(r, 3)],
            reports: r.below(5),
            report_ns: MS * [5, 50, 5_000][index(r, 3)],
            faults: Vec::new(),
            faults_end,
            clock_ppm: [0, 1_000, 10_000][index(r, 3)],
            patience_ns: None,
        };
        if r.below(3) == 0 {
            this.lease.lease = Duration::from_millis(300);
            this.lease.lease_longest = Duration::from_millis(300);
            this.lease.beat = Duration::from_millis(50);
        }
        this.volume.member.confirm_reads = seed % CONFIRMS_ONE_IN == 2;
        this.faults = faults(r, faults_end);
        if let Some(theme) = directed::theme(seed) {
            directed::direct(&mut this, theme, r);
        } else if seed.is_multiple_of(LONG_FREEZE_ONE_IN) {
            freeze_for_minutes(&mut this, r);
        } else if seed % CHANGES_ONE_IN == 1 {
            change_witnesses(&mut this, r);
        }
        this
    }
}

/// A process stands still for one to five minutes, as a virtual machine does that is moved. The others go on meanwhile, at
/// the pace of a quiet volume, so that the run does not take as long.
fn freeze_for_minutes(this: &mut Scenario, r: &mut Rng) {
    let at = MS * (500 + r.below(2_000));
    let span = MS * (60_000 + r.below(240_000));
    let fault = match r.below(4) {
        0 => Fault::Pause(u32::try_from(r.below(60)).expect("small"), span),
        1 => Fault::WitnessPause(u32::try_from(r.below(60)).expect("small"), span),
        _ => Fault::PausePrimary(span),
    };
    let place = this.faults.partition_point(|(before, _)| *before <= at);
    this.faults.insert(place, (at, fault));
    this.faults_end = this.faults_end.max(at + span + MS * 1_000);
    this.pace_ns = MS * 200;
}

/// Witnesses come and go, one at a time.
fn change_witnesses(this: &mut Scenario, r: &mut Rng) {
    this.spare_witnesses = 1 + u32::try_from(r.below(2)).expect("small");
    let mut at = MS * 300;
    while at < this.faults_end {
        let mut any = || u32::try_from(r.below(60)).expect("small");
        let fault = match any() % 6 {
            0 => Fault::LoseWitnessStore(any()),
            _ => Fault::ChangeWitnesses(any(), any()),
        };
        this.faults.push((at, fault));
        at += MS * (200 + r.below(2_000));
    }
    this.faults.sort_by_key(|(at, _)| *at);
}

fn index(rng: &mut Rng, count: u64) -> usize {
    usize::try_from(rng.below(count)).expect("small")
}

fn volume(rng: &mut Rng, data: u32) -> VolumeSetup {
    let mut nodes: Vec<NodeId> = (1..=data).map(NodeId).collect();
    for at in (1..nodes.len()).rev() {
        let other = index(rng, at as u64 + 1);
        nodes.swap(at, other);
    }
    if data > 3 && rng.below(2) == 0 {
        nodes.truncate(3);
    }
    let mut policy = Policy::for_placement(nodes);
    if rng.below(5) == 0 {
        policy.ack = AckRule::All;
        // With all copies to acknowledge and none to spare, a lost copy can be neither dropped nor replaced: see the
        // document's list of known weaknesses.
        policy.min_copies = 1;
    }
    if rng.below(4) == 0 {
        policy.min_copies = 1;
    }
    let kind = if rng.below(2) == 0 {
        VolumeKind::Log
    } else {
        VolumeKind::Block {
            size_bytes: 4_096 * (4 + rng.below(12)),
        }
    };
    let clients = 1 + u32::try_from(rng.below(3)).expect("small");
    VolumeSetup {
        kind,
        policy,
        clients,
    }
}

fn net(rng: &mut Rng) -> NetConfig {
    let streams = rng.below(2) == 0;
    let delay_max_ns = [200_000, 2 * MS, 20 * MS, 80 * MS][index(rng, 4)];
    NetConfig {
        streams,
        delay_min_ns: 20_000,
        delay_max_ns,
        loss_ppm: [0, 1_000, 20_000, 150_000][index(rng, 4)],
        double_ppm: [0, 1_000, 100_000][index(rng, 3)],
        late_ppm: [0, 1_000, 20_000][index(rng, 3)],
        late_ns: [500 * MS, 5_000 * MS, 120_000 * MS][index(rng, 3)],
    }
}

fn volume_config(rng: &mut Rng, mistakes: Mistakes) -> VolumeConfig {
    let member = MemberConfig {
        drop_after: Duration::from_millis([500, 1_000, 3_000][index(rng, 3)]),
        in_flight_bytes_max: [2_048, 65_536, 8 << 20][index(rng, 3)],
        mistakes,
        ..MemberConfig::default()
    };
    let feed_bytes_max = [512, 8_192, 262_144][index(rng, 3)];
    let tail_bytes = [0, 4_096, 1 << 20][index(rng, 3)];
    let checkpoint_bytes = [4_096, 32_768, 1 << 20][index(rng, 3)];
    let keep = index(rng, 4);
    VolumeConfig {
        member,
        record_bytes_max: 1 << 20,
        feed_bytes_max,
        tail_bytes,
        checkpoint_bytes,
        log_keep_bytes: [1 << 30, 1 << 30, 1 << 30, 65_536][keep],
        member_keep_bytes: 1 << 30,
        lag_bytes_max: [1 << 30, 2_048, 16_384, 16_384][keep],
        parked_max: 64,
    }
}

/// Weights of all kinds, drawn anew for each seed.
fn faults(rng: &mut Rng, end: u64) -> Vec<(u64, Fault)> {
    const KINDS: u64 = 25;
    let mut weights = Vec::new();
    for kind in 0..KINDS {
        let on = rng.below(3) == 0;
        weights.push((kind, if on { 1 + rng.below(8) } else { 0 }));
    }
    let total: u64 = weights.iter().map(|(_, weight)| weight).sum();
    let mean = MS * [150, 400, 1_000, 3_000][index(rng, 4)];
    let mut out = Vec::new();
    let mut at = 300 * MS;
    loop {
        at += mean / 4 + rng.below(mean * 3 / 2);
        if at >= end || total == 0 {
            return out;
        }
        let mut pick = rng.below(total);
        let kind = weights
            .iter()
            .find(|(_, weight)| {
                let hit = pick < *weight;
                pick = pick.saturating_sub(*weight);
                hit
            })
            .map_or(0, |(kind, _)| *kind);
        out.push((at, fault(rng, kind)));
    }
}

fn fault(r: &mut Rng, kind: u64) -> Fault {
    let a = u32::try_from(r.below(60)).expect("small");
    let b = u32::try_from(r.below(60)).expect("small");
    let mode = u8::try_from(r.below(3)).expect("small");
    let spans = [20 * MS, 300 * MS, 1_500 * MS, 6_000 * MS];
    let longest = spans[index(r, 4)];
    let span = r.below(longest) + MS;
    let signed = |r: &mut Rng, bound: u64| {
        i64::try_from(r.below(2 * bound + 1)).expect("small") - i64::try_from(bound).expect("small")
    };
    match kind {
        0 => Fault::PowerLoss(a, span),
        1 => Fault::PowerLossAll(span),
        2 => Fault::Kill(a, span),
        3 => Fault::WitnessCrash(a, span),
        4 => Fault::Pause(a, span),
        5 => Fault::WitnessPause(a, span),
        6 => Fault::CutOneWay(a, b, span),
        7 => Fault::Cut(a, b, span),
        8 => Fault::Isolate(a, mode, span),
        9 => Fault::Split(b, span),
        10 => Fault::SplitData(b, span),
        11 => Fault::Reset(a, b),
        12 => Fault::ClockRate(a, signed(r, 10_000)),
        13 => Fault::WallJump(a, signed(r, DAY_MS)),
        14 => Fault::DiskError(a, mode == 0, 1 + r.below(6)),
        15 => Fault::DiskFull(a, span),
        16 => Fault::DiskHang(a, span),
        17 => Fault::Rot(a),
        18 => Fault::LoseDisk(a),
        19 => Fault::Handover(a, b),
        20 => Fault::KillPrimary(span),
        21 => Fault::PowerLossPrimary(span),
        22 => Fault::PausePrimary(span),
        23 => Fault::IsolatePrimary(mode, span),
        _ => Fault::StrandPrimary(mode == 0, span),
    }
}
