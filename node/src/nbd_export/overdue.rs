//! Requests that nobody served in time: what is told of them, beside the `EIO` that the client gets.
//!
//! A client whose requests wait has many of them, and all run out of time together. So they are told by the volume and by the
//! [`WINDOW`]: one [`Overdue`] with their number, a moment after the first of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// One volume's requests are told at most this often.
const WINDOW: Duration = Duration::from_secs(10);

/// Those that run out of time within this span of the first are told with it.
const TOGETHER: Duration = Duration::from_secs(1);

/// Requests of NBD clients that ended in `EIO` because nobody served the volume in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overdue {
    /// The volume.
    pub volume: String,
    /// How many.
    pub requests: u64,
    /// How long each of them waited.
    pub waited: Duration,
}

impl Overdue {
    /// In words, for whoever looks after the cluster.
    #[must_use]
    pub fn describe(&self) -> String {
        let (requests, ended) = match self.requests {
            1 => ("1 NBD request".to_owned(), "it has"),
            more => (format!("{more} NBD requests"), "they have"),
        };
        format!(
            "nobody served `{}` for {:.1} s, so {requests} ended in EIO: {ended} an unknown outcome, and the client may take its \
             disk for broken; `mainstay status` says what is missing, and `nbd.park_timeout_ms` is how long requests wait",
            self.volume,
            self.waited.as_secs_f64()
        )
    }
}

/// Who is told.
pub type Tell = Arc<dyn Fn(Overdue) + Send + Sync>;

/// Counts by volume, and tells.
pub(super) struct OverdueCount {
    waited: Duration,
    tell: Tell,
    /// Requests not told yet. A volume is here while its window runs.
    counts: Mutex<BTreeMap<String, u64>>,
}

impl std::fmt::Debug for OverdueCount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OverdueCount")
            .field("waited", &self.waited)
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}

impl OverdueCount {
    pub(super) fn new(waited: Duration, tell: Tell) -> Arc<Self> {
        Arc::new(Self {
            waited,
            tell,
            counts: Mutex::default(),
        })
    }

    /// One more request of `volume` ran out of time.
    pub(super) fn add(self: &Arc<Self>, volume: &str) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(volume) {
            *count += 1;
            return;
        }
        counts.insert(volume.to_owned(), 1);
        drop(counts);
        tokio::spawn(Arc::clone(self).window(volume.to_owned()));
    }

    /// Tells until a whole window brought nothing.
    async fn window(self: Arc<Self>, volume: String) {
        tokio::time::sleep(TOGETHER).await;
        while let Some(requests) = self.take(&volume) {
            (self.tell)(Overdue {
                volume: volume.clone(),
                requests,
                waited: self.waited,
            });
            tokio::time::sleep(WINDOW).await;
        }
    }

    /// What was counted since the last time; `None` if nothing, and then the window is over.
    fn take(&self, volume: &str) -> Option<u64> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.get_mut(volume).map(std::mem::take)?;
        if count == 0 {
            counts.remove(volume);
            return None;
        }
        Some(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn requests_are_told_together_by_volume_and_not_too_often() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let to = Arc::clone(&told);
        let tell: Tell = Arc::new(move |overdue| to.lock().expect("not poisoned").push(overdue));
        let count = OverdueCount::new(Duration::from_secs(60), tell);
        let heard = || {
            let mut told = told.lock().expect("not poisoned");
            let heard = told.drain(..).map(|o: Overdue| (o.volume, o.requests));
            heard.collect::<Vec<_>>()
        };
        for volume in ["a", "a", "b", "a"] {
            count.add(volume);
        }
        tokio::time::sleep(TOGETHER * 2).await;
        let mut first = heard();
        first.sort();
        assert_eq!(first, [("a".to_owned(), 3), ("b".to_owned(), 1)]);
        // Within the window they only count.
        count.add("a");
        count.add("a");
        tokio::time::sleep(WINDOW / 2).await;
        assert_eq!(heard(), []);
        tokio::time::sleep(WINDOW).await;
        assert_eq!(heard(), [("a".to_owned(), 2)]);
        // After a window without any, the next is told at once again.
        tokio::time::sleep(WINDOW * 2).await;
        assert!(count.counts.lock().expect("not poisoned").is_empty());
        count.add("a");
        tokio::time::sleep(TOGETHER * 2).await;
        assert_eq!(heard(), [("a".to_owned(), 1)]);
    }

    #[test]
    fn what_is_told_says_what_to_do() {
        let one = Overdue {
            volume: "disk".to_owned(),
            requests: 1,
            waited: Duration::from_millis(1500),
        };
        let text = one.describe();
        assert!(
            text.contains("`disk` for 1.5 s, so 1 NBD request ended in EIO"),
            "{text}"
        );
        assert!(text.contains("mainstay status"), "{text}");
        let text = Overdue { requests: 7, ..one }.describe();
        assert!(text.contains("7 NBD requests ended in EIO: they"), "{text}");
    }
}
