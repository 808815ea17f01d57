//! What is wrong with a cluster, in sentences that say what it means and what to do.

use mainstay_client::report::{
    ClusterStatus, LearnerStatus, MemberRole, MemberStatus, NodeStatus, VolumeHealth, VolumeStatus,
};
use mainstay_types::VolumeKind;

use super::text;

/// Waiting longer than this for a commit is worth a sentence.
const UNCOMMITTED_MS: u64 = 1000;

/// Everything that is wrong, the gravest first.
pub(super) fn of_cluster(status: &ClusterStatus) -> Vec<String> {
    let mut found = Vec::new();
    found.extend(of_witnesses(status));
    for volume in &status.volumes {
        found.extend(of_volume(volume));
    }
    found.extend(status.nodes.iter().filter_map(of_node));
    found
}

fn of_witnesses(status: &ClusterStatus) -> Option<String> {
    let all = status.nodes.iter().filter(|node| node.witness).count();
    let alive = status
        .nodes
        .iter()
        .filter(|node| node.witness && node.reachable)
        .count();
    let majority = all / 2 + 1;
    if alive == all {
        return None;
    }
    Some(if alive < majority {
        format!(
            "{alive} of {all} witnesses answer and {majority} are needed: leases end and nothing can be promoted; start \
             witnesses again"
        )
    } else if alive == majority {
        format!(
            "{alive} of {all} witnesses answer: if one more is lost, volumes stop serving; start the others again"
        )
    } else {
        format!("{alive} of {all} witnesses answer; start the others again")
    })
}

fn of_node(node: &NodeStatus) -> Option<String> {
    let NodeStatus {
        node: id,
        address,
        reason,
        ..
    } = node;
    if !node.reachable {
        return Some(format!(
            "node {id} at {address} does not answer: start it, or look at the network"
        ));
    }
    (!node.healthy).then(|| format!("node {id} is not well: {reason}"))
}

/// Everything that is wrong with one volume.
pub(super) fn of_volume(volume: &VolumeStatus) -> Vec<String> {
    let name = &volume.name;
    let mut found = Vec::new();
    match volume.health {
        VolumeHealth::Unavailable => {
            found.push(format!("`{name}` has no primary: reads and writes wait"));
        }
        VolumeHealth::Promoting => {
            found.push(format!(
                "`{name}` is between two primaries: reads and writes wait"
            ));
        }
        VolumeHealth::Ok | VolumeHealth::Degraded if volume.authoritative && !volume.lease_held => {
            found.push(format!(
                "the primary of `{name}`, node {}, holds no lease: nothing is acknowledged until it does",
                volume.primary
            ));
        }
        _ => {}
    }
    found.extend(
        volume
            .problems
            .iter()
            .map(|problem| format!("`{name}`: {problem}")),
    );
    if volume.uncommitted_age_ms > UNCOMMITTED_MS {
        found.push(format!(
            "`{name}`: the oldest write waits for its commit for {}",
            text::span_ms(volume.uncommitted_age_ms)
        ));
    }
    if volume.hold_down_ms > 0 {
        found.push(format!(
            "`{name}` was promoted too often: the next promotion waits for {}",
            text::span_ms(volume.hold_down_ms)
        ));
    }
    found.extend(
        volume
            .members
            .iter()
            .filter_map(|member| of_member(volume, member)),
    );
    found.extend(
        volume
            .learners
            .iter()
            .filter_map(|learner| of_learner(volume, learner)),
    );
    found
}

fn of_member(volume: &VolumeStatus, member: &MemberStatus) -> Option<String> {
    let what = if member.damaged {
        "is damaged: it is not promoted until it is repaired".to_owned()
    } else if member.in_doubt {
        "is in doubt about its last entries: it is not promoted until they are settled".to_owned()
    } else if member.role == MemberRole::Silent {
        format!("is silent for {}", text::span_ms(member.silent_ms))
    } else if member.role == MemberRole::Refusing {
        format!("refuses: {}", member.reason)
    } else if member.rebuilding {
        "is being rebuilt: it does not count for a promotion yet".to_owned()
    } else {
        return None;
    };
    Some(format!(
        "the copy of `{}` on node {} {what}",
        volume.name, member.node
    ))
}

fn of_learner(volume: &VolumeStatus, learner: &LearnerStatus) -> Option<String> {
    (!learner.reason.is_empty()).then(|| {
        format!(
            "the copy of `{}` on node {} does not catch up: {}",
            volume.name, learner.node, learner.reason
        )
    })
}

/// A volume's kind in the words of the commands.
pub(super) fn kind_word(kind: VolumeKind) -> &'static str {
    match kind {
        VolumeKind::Log => "log",
        VolumeKind::Block { .. } => "block",
    }
}

#[cfg(test)]
mod tests {
    use super::super::status::tests::{cluster, volume};
    use super::*;

    #[test]
    fn a_healthy_cluster_has_no_problems() {
        assert_eq!(of_cluster(&cluster()), Vec::<String>::new());
    }

    #[test]
    fn lost_witnesses_are_told_by_what_they_mean() {
        let mut status = cluster();
        for (lost, part) in [(0, "if one more is lost"), (1, "nothing can be promoted")] {
            let witnesses = status.nodes.iter_mut().filter(|node| node.witness);
            witnesses
                .skip(lost)
                .take(1)
                .for_each(|node| node.reachable = false);
            let found = of_cluster(&status);
            assert!(found[0].contains(part), "{found:?}");
        }
    }

    #[test]
    fn each_trouble_of_a_volume_has_its_sentence() {
        let mut sick = volume();
        sick.lease_held = false;
        sick.uncommitted_age_ms = 1500;
        sick.hold_down_ms = 9000;
        sick.problems.push("2 of 3 copies are members".to_owned());
        sick.members[1].role = MemberRole::Silent;
        sick.members[1].silent_ms = 2500;
        sick.members[2].damaged = true;
        let found = of_volume(&sick).join("\n");
        for part in [
            "holds no lease",
            "waits for its commit for 1.5 s",
            "2 of 3 copies are members",
            "waits for 9 s",
            "on node 2 is silent for 2.5 s",
            "on node 3 is damaged",
        ] {
            assert!(found.contains(part), "{part} in\n{found}");
        }
        sick.health = VolumeHealth::Unavailable;
        assert!(of_volume(&sick)[0].contains("no primary"));
    }
}
