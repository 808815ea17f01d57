//! Who may connect: counts of connections, of unfinished handshakes and of connections per peer.
//!
//! Refusing is the cheapest thing the server does: no task, no buffer, no byte sent. Every count is given back
//! by dropping [`Admitted`], on whichever path a connection ends.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::limits::Limits;

#[derive(Debug, Default)]
pub(crate) struct Admission {
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    connections: usize,
    handshakes: usize,
    refused: u64,
    /// Invariant: every peer in it has a connection, so it is no larger than `connections`.
    peers: HashMap<IpAddr, PeerCounts>,
}

#[derive(Clone, Copy, Debug, Default)]
struct PeerCounts {
    connections: usize,
    handshakes: usize,
}

/// A snapshot for [`ServerStats`](crate::ServerStats).
pub(crate) struct AdmissionCounts {
    pub(crate) connections: usize,
    pub(crate) handshakes: usize,
    pub(crate) refused: u64,
}

/// The place of one connection.
#[derive(Debug)]
pub(crate) struct Admitted {
    admission: Arc<Admission>,
    peer: IpAddr,
    phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Handshake,
    Transmission,
}

impl Admission {
    /// A place for a connection of `peer`, or `None` when it would exceed a limit.
    pub(crate) fn admit(self: &Arc<Self>, peer: IpAddr, limits: &Limits) -> Option<Admitted> {
        let peer = network(peer);
        let mut counts = self.lock();
        let of_peer = counts.peers.get(&peer).copied().unwrap_or_default();
        if counts.connections >= limits.connections_max
            || counts.handshakes >= limits.handshakes_max
            || of_peer.connections >= limits.peer_connections_max
            || of_peer.handshakes >= limits.peer_handshakes_max
        {
            counts.refused += 1;
            return None;
        }
        counts.connections += 1;
        counts.handshakes += 1;
        let of_peer = counts.peers.entry(peer).or_default();
        of_peer.connections += 1;
        of_peer.handshakes += 1;
        Some(Admitted {
            admission: Arc::clone(self),
            peer,
            phase: Phase::Handshake,
        })
    }

    pub(crate) fn counts(&self) -> AdmissionCounts {
        let counts = self.lock();
        AdmissionCounts {
            connections: counts.connections,
            handshakes: counts.handshakes,
            refused: counts.refused,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Admitted {
    /// The peer has chosen an export.
    pub(crate) fn handshake_done(&mut self) {
        self.admission
            .lock()
            .end_handshake(self.peer, &mut self.phase);
    }
}

impl Counts {
    fn end_handshake(&mut self, peer: IpAddr, phase: &mut Phase) {
        if *phase == Phase::Handshake {
            *phase = Phase::Transmission;
            self.handshakes -= 1;
            if let Some(of_peer) = self.peers.get_mut(&peer) {
                of_peer.handshakes -= 1;
            }
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut counts = self.admission.lock();
        counts.end_handshake(self.peer, &mut self.phase);
        counts.connections -= 1;
        if let Some(of_peer) = counts.peers.get_mut(&self.peer) {
            of_peer.connections -= 1;
            if of_peer.connections == 0 {
                counts.peers.remove(&self.peer);
            }
        }
    }
}

/// What counts as one peer: an IPv4 address, or the 64-bit network that an IPv6 site hands out freely.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit(admission: &Arc<Admission>, peer: &str, limits: &Limits) -> Option<Admitted> {
        admission.admit(peer.parse().expect("address"), limits)
    }

    #[test]
    fn each_limit_holds_and_is_given_back() {
        let admission = Arc::new(Admission::default());
        let limits = Limits {
            connections_max: 3,
            handshakes_max: 2,
            peer_connections_max: 2,
            ..Limits::default()
        };
        let mut first = admit(&admission, "10.0.0.1", &limits).expect("room");
        let mut second = admit(&admission, "10.0.0.1", &limits).expect("room");
        assert!(
            admit(&admission, "10.0.0.2", &limits).is_none(),
            "handshakes"
        );
        first.handshake_done();
        second.handshake_done();
        assert!(
            admit(&admission, "::ffff:10.0.0.1", &limits).is_none(),
            "peer"
        );
        let third = admit(&admission, "10.0.0.2", &limits).expect("room");
        assert!(
            admit(&admission, "10.0.0.3", &limits).is_none(),
            "connections"
        );
        drop((first, second, third));
        let counts = admission.counts();
        assert_eq!(
            (counts.connections, counts.handshakes, counts.refused),
            (0, 0, 3)
        );
        assert!(admission.lock().peers.is_empty());
    }

    #[test]
    fn one_peer_cannot_take_every_handshake() {
        let admission = Arc::new(Admission::default());
        let limits = Limits {
            handshakes_max: 3,
            peer_handshakes_max: 2,
            ..Limits::default()
        };
        let mut first = admit(&admission, "10.0.0.1", &limits).expect("room");
        let _second = admit(&admission, "10.0.0.1", &limits).expect("room");
        assert!(admit(&admission, "10.0.0.1", &limits).is_none());
        let _other = admit(&admission, "10.0.0.2", &limits).expect("room");
        first.handshake_done();
        assert!(admit(&admission, "10.0.0.1", &limits).is_some());
    }

    #[test]
    fn an_ipv6_site_is_one_peer() {
        let network = |text: &str| super::network(text.parse().expect("address"));
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:2"));
        assert_ne!(network("2001:db8:0:1::1"), network("2001:db8::1"));
        assert_eq!(network("::ffff:1.2.3.4"), network("1.2.3.4"));
    }
}
