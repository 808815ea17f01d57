//! From the file's sections to what other crates take.

use std::time::Duration;

use mainstay_replication::{HoldDownConfig, LeaseConfig, MemberConfig};
use mainstay_types::{ClusterId, VolumeName};

use crate::runtime::hooks::HookCommands;
use crate::runtime::operator_command::OperatorCommand;

use super::{HostPort, LeaseSection, NbdSection, NodeSection, ReplicationSection};

const MIB: u64 = 1 << 20;

/// Sixteen hexadecimal digits are an id; anything else is a name, and its hash is the id.
pub(super) fn cluster_id(cluster: &str) -> ClusterId {
    cluster.parse().unwrap_or_else(|_| {
        // The hash of volume names: one hash in the code, and the check allowed only what it takes.
        let id = cluster.parse::<VolumeName>().map_or(0, |name| name.id().0);
        ClusterId(id)
    })
}

impl NodeSection {
    /// Its name, for people.
    #[must_use]
    pub fn display_name(&self) -> String {
        self.name
            .clone()
            .unwrap_or_else(|| format!("node-{}", self.id))
    }
}

impl super::Config {
    /// The address to tell others for a listener of this node that was bound to `port`.
    #[must_use]
    pub fn advertised(&self, port: u16) -> HostPort {
        let host = self
            .node
            .advertise
            .as_deref()
            .unwrap_or_else(|| self.own_peer().grpc.host());
        HostPort::new(host, port)
    }

    /// What the replication core of a member takes.
    #[must_use]
    pub fn member_config(&self) -> MemberConfig {
        MemberConfig {
            await_ready: self.hooks.promoted.is_some(),
            overdue_after: Duration::from_millis(self.lease.unwell_after_ms),
            ..MemberConfig::from(&self.replication)
        }
    }

    /// What leases and witnesses take.
    #[must_use]
    pub fn lease_config(&self) -> LeaseConfig {
        let fence = self.fence.as_ref();
        LeaseConfig {
            external_fence: fence.map(|fence| Duration::from_millis(fence.timeout_ms)),
            ..LeaseConfig::from(&self.lease)
        }
    }

    /// The hooks.
    #[must_use]
    pub fn hook_commands(&self) -> HookCommands {
        let hooks = &self.hooks;
        let hook = |words: &Option<Vec<String>>| command(words.as_ref()?, hooks.timeout_ms);
        HookCommands {
            promoted: hook(&hooks.promoted),
            demoted: hook(&hooks.demoted),
        }
    }

    /// The external fence.
    #[must_use]
    pub fn fence_command(&self) -> Option<OperatorCommand> {
        let fence = self.fence.as_ref()?;
        command(&fence.command, fence.timeout_ms)
    }
}

fn command(words: &[String], timeout_ms: u64) -> Option<OperatorCommand> {
    let (program, arguments) = words.split_first()?;
    Some(OperatorCommand {
        program: program.into(),
        arguments: arguments.to_vec(),
        timeout: Duration::from_millis(timeout_ms),
    })
}

impl From<&ReplicationSection> for MemberConfig {
    fn from(section: &ReplicationSection) -> Self {
        Self {
            heartbeat: Duration::from_millis(section.heartbeat_ms),
            commit_delay: Duration::from_millis(section.commit_delay_ms),
            retransmit: Duration::from_millis(section.retransmit_ms),
            drop_after: Duration::from_millis(section.drop_after_ms),
            in_flight_bytes_max: section.in_flight_mib_max * MIB,
            handover_timeout: Duration::from_millis(section.handover_timeout_ms),
            round_retry: Duration::from_millis(section.round_retry_ms),
            confirm_reads: section.confirm_reads,
            ..Self::default()
        }
    }
}

impl From<&LeaseSection> for LeaseConfig {
    fn from(section: &LeaseSection) -> Self {
        Self {
            lease: Duration::from_millis(section.lease_ms),
            lease_longest: Duration::from_millis(section.longest_ms()),
            beat: Duration::from_millis(section.beat_ms),
            rate_error_ppm: section.rate_error_ppm,
            unwell_after: Duration::from_millis(section.unwell_after_ms),
            stagger: Duration::from_millis(section.stagger_ms),
            grace: Duration::from_millis(section.grace_ms),
            retry: Duration::from_millis(section.retry_ms),
            attempt: Duration::from_millis(section.attempt_ms),
            hold_down: HoldDownConfig {
                first: Duration::from_millis(section.hold_down_ms),
                longest: Duration::from_millis(section.hold_down_longest_ms),
                ..HoldDownConfig::default()
            },
            ..Self::default()
        }
    }
}

impl LeaseSection {
    /// What a restarted witness waits out.
    #[must_use]
    pub fn longest_ms(&self) -> u64 {
        self.lease_longest_ms.unwrap_or(self.lease_ms)
    }
}

impl NbdSection {
    /// What the NBD server takes.
    #[must_use]
    pub fn limits(&self) -> mainstay_nbd::Limits {
        let bytes = |mib: u32| (mib as usize) << 20;
        mainstay_nbd::Limits {
            request_bytes_max: self.request_mib_max << 20,
            connection_requests_max: self.connection_requests_max as usize,
            connection_bytes_max: bytes(self.connection_mib_max),
            server_bytes_max: bytes(self.server_mib_max),
            connections_max: self.connections_max as usize,
            peer_connections_max: self.peer_connections_max as usize,
            handshake_timeout: Duration::from_millis(self.handshake_timeout_ms),
            ..mainstay_nbd::Limits::default()
        }
    }

    /// How long a request waits for a primary.
    #[must_use]
    pub fn park_timeout(&self) -> Duration {
        Duration::from_millis(self.park_timeout_ms)
    }
}
