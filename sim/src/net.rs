//! The network: delay, loss, duplication, reordering, cuts in one or both directions.
//!
//! Two modes. *Streams*: each direction of a link delivers in order, until it breaks; what was in flight is then lost
//! and both ends hear of it, as with TCP. *Hostile*: every message is on its own; it may be lost, doubled, overtaken,
//! or come minutes later, to whatever process runs there by then.

use std::collections::{BTreeMap, BTreeSet};

use mainstay_replication::Rng;
use mainstay_types::NodeId;

/// How a network behaves.
#[derive(Debug, Clone, Copy)]
pub struct NetConfig {
    /// Ordered streams, or every message on its own.
    pub streams: bool,
    /// Shortest way of a message.
    pub delay_min_ns: u64,
    /// Longest ordinary way.
    pub delay_max_ns: u64,
    /// Messages in a million that are lost, in hostile mode.
    pub loss_ppm: u64,
    /// Messages in a million that come twice, in hostile mode.
    pub double_ppm: u64,
    /// Messages in a million that come very late, in hostile mode.
    pub late_ppm: u64,
    /// How late.
    pub late_ns: u64,
}

/// Links between nodes.
#[derive(Debug)]
pub struct Net {
    config: NetConfig,
    rng: Rng,
    /// Directions that carry nothing.
    cut: BTreeSet<(NodeId, NodeId)>,
    /// Last delivery and generation of each direction.
    links: BTreeMap<(NodeId, NodeId), (u64, u64)>,
    /// After the faults have ended everything is delivered.
    calm: bool,
    /// Lost and doubled so far.
    pub lost: u64,
    /// Doubled so far.
    pub doubled: u64,
}

/// When a message arrives, and on which generation of its link.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// True time.
    pub at: u64,
    /// Dropped if the link has broken since.
    pub generation: u64,
}

impl Net {
    /// Whole links; choices from `seed`.
    #[must_use]
    pub fn new(config: NetConfig, seed: u64) -> Self {
        Self {
            config,
            rng: Rng::new(seed),
            cut: BTreeSet::new(),
            links: BTreeMap::new(),
            calm: false,
            lost: 0,
            doubled: 0,
        }
    }

    /// Whether links are ordered streams.
    #[must_use]
    pub fn streams(&self) -> bool {
        self.config.streams
    }

    /// What becomes of a message sent now: no, one or two arrivals.
    pub fn send(&mut self, now: u64, from: NodeId, to: NodeId) -> [Option<Arrival>; 2] {
        let c = self.config;
        let ordinary = c.delay_min_ns + self.rng.below(c.delay_max_ns - c.delay_min_ns + 1);
        let (last, generation) = self.links.entry((from, to)).or_insert((0, 0));
        let generation = *generation;
        if self.cut.contains(&(from, to)) {
            self.lost += 1;
            return [None, None];
        }
        if c.streams {
            let at = (now + ordinary).max(*last + 1);
            *last = at;
            return [Some(Arrival { at, generation }), None];
        }
        if self.calm {
            let at = now + ordinary;
            return [Some(Arrival { at, generation }), None];
        }
        let one = |rng: &mut Rng| {
            if rng.below(1_000_000) < c.loss_ppm {
                return None;
            }
            let late = rng.below(1_000_000) < c.late_ppm;
            let extra = if late { rng.below(c.late_ns) } else { 0 };
            Some(Arrival {
                at: now + ordinary + extra,
                generation,
            })
        };
        let first = one(&mut self.rng);
        if first.is_none() {
            self.lost += 1;
        }
        if self.rng.below(1_000_000) < c.double_ppm {
            self.doubled += 1;
            let late = self.rng.below(c.delay_max_ns * 20 + 1);
            let second = Arrival {
                at: now + ordinary + late,
                generation,
            };
            return [first, Some(second)];
        }
        [first, None]
    }

    /// Whether something that arrives now on `generation` of a link is still wanted.
    #[must_use]
    pub fn delivers(&self, from: NodeId, to: NodeId, generation: u64) -> bool {
        if self.cut.contains(&(from, to)) && !self.calm {
            return false;
        }
        !self.config.streams
            || self
                .links
                .get(&(from, to))
                .is_none_or(|(_, present)| *present == generation)
    }

    /// Breaks the stream between two nodes: what is in flight is lost.
    pub fn reset(&mut self, a: NodeId, b: NodeId) {
        for pair in [(a, b), (b, a)] {
            self.links.entry(pair).or_insert((0, 0)).1 += 1;
        }
    }

    /// Cuts one direction.
    pub fn cut(&mut self, from: NodeId, to: NodeId) {
        self.cut.insert((from, to));
    }

    /// Mends one direction.
    pub fn mend(&mut self, from: NodeId, to: NodeId) {
        self.cut.remove(&(from, to));
    }

    /// Whether a direction is cut.
    #[must_use]
    pub fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.cut.contains(&(from, to))
    }

    /// Mends everything, for good.
    pub fn heal(&mut self) {
        self.cut.clear();
        self.calm = true;
        self.config.delay_max_ns = self.config.delay_max_ns.min(10_000_000);
    }
}
