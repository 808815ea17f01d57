//! Whose book a snapshot is: the history of the very log that is read, not one that some node says.

use std::time::Duration;

use anyhow::{Context as _, bail};
use mainstay_client::report::VolumeStatus;
use mainstay_client::{Admin, LogVolume};
use mainstay_types::{Epoch, Lsn};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// Until the word of the primary and that of the log agree: right after a failover the news spreads.
const AGREE_WITHIN: Duration = Duration::from_secs(10);
const AGAIN_AFTER: Duration = Duration::from_millis(50);

/// Whose book it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Of {
    pub(super) volume: String,
    pub(super) id: String,
    /// Every volume has its own, another one of the same name, too. A forced promotion begins a new one and may give up records that the
    /// snapshot has: then it is of no use any more.
    pub(super) lineage: String,
}

/// The history that `log` is in, and where the log ends in it.
///
/// A node that is cut off may go on naming a history that was given up. So only the primary's word counts, and only in the epoch in which the
/// log itself answers: an epoch belongs to one history.
pub(super) async fn of(volume: &str, admin: &Admin, log: &LogVolume) -> anyhow::Result<(Of, Lsn)> {
    let give_up = Instant::now() + AGREE_WITHIN;
    loop {
        let here = log.position().await.context("where the log ends")?;
        let status = admin.show_volume(volume).await?;
        if is_of_primary(&status, here.epoch) {
            let of = Of {
                volume: volume.to_owned(),
                id: status.id.to_string(),
                lineage: status.lineage.to_string(),
            };
            return Ok((of, here.next));
        }
        if Instant::now() >= give_up {
            bail!(
                "node {} does not hear the primary of `{volume}`, so nobody says whose the snapshot is: name other nodes with --endpoints, \
                 or leave --snapshot out",
                status.seen_by
            );
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

fn is_of_primary(status: &VolumeStatus, epoch: Epoch) -> bool {
    status.authoritative && status.lease_held && !status.deleted && status.epoch == epoch
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::status::tests::volume;

    #[test]
    fn only_the_primary_of_the_same_epoch_says_whose_a_book_is() {
        let good = volume();
        assert!(is_of_primary(&good, good.epoch));
        for other in [good.epoch.next(), Epoch(good.epoch.0 - 1)] {
            assert!(!is_of_primary(&good, other), "another epoch");
        }
        let alone = |change: fn(&mut VolumeStatus)| {
            let mut status = volume();
            change(&mut status);
            is_of_primary(&status, status.epoch)
        };
        assert!(!alone(|status| status.authoritative = false), "a copy");
        assert!(!alone(|status| status.lease_held = false), "deposed");
        assert!(!alone(|status| status.deleted = true), "deleted");
    }
}
