//! Telling the witnesses that an instance is dead.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use mainstay_types::{Instance, NodeId};
use tokio::time::{sleep, timeout};

/// Where reports of dead instances go.
///
/// An implementation keeps a warm connection to each witness from its making on: a report is worth only as much
/// as it is faster than the lease.
pub trait ReleaseSink: Send + Sync + 'static {
    /// Tells every witness, all at the same time, that `instance` of `node` has ended.
    ///
    /// `Ok` only once every witness confirmed it. Called again after an error: a second report of one instance
    /// must be harmless. May be cancelled at any await.
    fn release(
        &self,
        node: NodeId,
        instance: Instance,
    ) -> impl Future<Output = Result<(), ReleaseError>> + Send;
}

/// Some witness did not confirm.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{confirmed} of {witnesses} witnesses confirmed: {reason}")]
pub struct ReleaseError {
    /// Witnesses that did.
    pub confirmed: usize,
    /// Witnesses of the cluster.
    pub witnesses: usize,
    /// What the last of the others said.
    pub reason: String,
}

/// Reports to nobody: the lease of a crashed worker runs out by itself. Correct, and slower by one lease.
#[derive(Debug, Clone, Copy, Default)]
pub struct WaitForLease;

impl ReleaseSink for WaitForLease {
    async fn release(&self, _node: NodeId, _instance: Instance) -> Result<(), ReleaseError> {
        Ok(())
    }
}

/// Reports once and, as long as some witness did not confirm, again, for about a second in all.
pub(super) async fn report<S: ReleaseSink>(sink: Arc<S>, node: NodeId, instance: Instance) {
    let attempts = async {
        let mut pause = PAUSE_FIRST;
        loop {
            match timeout(ANSWER_WITHIN, sink.release(node, instance)).await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => {
                    tracing::warn!(%node, %instance, %error, "not every witness took the release");
                }
                Err(_) => {
                    tracing::warn!(%node, %instance, "a witness did not answer the release in time");
                }
            }
            sleep(pause).await;
            pause *= 2;
        }
    };
    match timeout(REPORT_WITHIN, attempts).await {
        Ok(()) => tracing::info!(%node, %instance, "released"),
        // Witnesses that did not hear it wait for the lease.
        Err(_) => tracing::warn!(%node, %instance, "gave up: the rest is left to the lease"),
    }
}

/// A witness that is up answers in a millisecond.
const ANSWER_WITHIN: Duration = Duration::from_millis(300);
const PAUSE_FIRST: Duration = Duration::from_millis(20);
/// After this the default lease has run out, and the report is worth nothing.
const REPORT_WITHIN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct Failing {
        calls: AtomicUsize,
        failures: usize,
        hang: bool,
    }

    impl ReleaseSink for Failing {
        async fn release(&self, _: NodeId, _: Instance) -> Result<(), ReleaseError> {
            let call = self.calls.fetch_add(1, Ordering::Relaxed);
            if self.hang {
                std::future::pending::<()>().await;
            }
            if call < self.failures {
                return Err(ReleaseError {
                    confirmed: 2,
                    witnesses: 3,
                    reason: "connection refused".to_owned(),
                });
            }
            Ok(())
        }
    }

    async fn calls(sink: Failing) -> usize {
        let sink = Arc::new(sink);
        report(sink.clone(), NodeId(1), Instance(7)).await;
        sink.calls.load(Ordering::Relaxed)
    }

    #[tokio::test(start_paused = true)]
    async fn a_release_is_repeated_until_every_witness_confirmed() {
        let sink = |failures| Failing {
            failures,
            ..Failing::default()
        };
        assert_eq!(calls(sink(0)).await, 1);
        assert_eq!(calls(sink(3)).await, 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_release_gives_up_after_about_a_second() {
        let before = tokio::time::Instant::now();
        let tried = calls(Failing {
            failures: usize::MAX,
            ..Failing::default()
        })
        .await;
        assert!(tried >= 4, "{tried} attempts");
        let tried = calls(Failing {
            hang: true,
            ..Failing::default()
        })
        .await;
        assert!(tried >= 3, "{tried} attempts at a silent witness");
        assert!(before.elapsed() <= 2 * REPORT_WITHIN);
    }
}
