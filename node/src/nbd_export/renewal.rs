//! Certificates that are renewed while a listener runs: its files are looked at again and again, and serve new connections once they
//! have changed for something that works.
//!
//! - Certificate and key are two files, and are replaced one after the other. Nothing is read before they have been the same for
//!   two looks.
//! - What cannot be used is told once, with what to do about it. What was in force stays in force.
//! - A certificate that is not valid yet is taken when its time has come, without another change of the files.

use std::convert::Infallible;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mainstay_nbd::{Tls, TlsError, TlsIdentity};

use crate::config::{NbdTlsSection, tls};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What became of files that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Renewal {
    /// They serve new connections.
    Taken {
        /// The file of the certificate.
        cert: PathBuf,
    },
    /// They are of no use.
    Refused {
        /// Why, and what to do about it.
        why: String,
    },
}

impl Renewal {
    /// In words, for whoever looks after the cluster.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Taken { cert } => format!(
                "the files of `{}` have changed: new NBD connections get the new certificate, those that are open keep theirs",
                cert.display()
            ),
            Self::Refused { why } => format!(
                "the changed files of NBD's TLS are not used, those of before stay in force: {why}"
            ),
        }
    }
}

/// What a listener does about TLS, and the files that it is from.
#[derive(Debug)]
pub struct WatchedTls {
    section: NbdTlsSection,
    tls: Tls,
    /// The files as they were before they were read last.
    judged: Stamps,
    look_every: Duration,
}

/// What tells a file from the one that it was: of certificate, key and authorities.
type Stamps = [Option<Stamp>; 3];

/// A change of content, of owner or rights, or another file in its place.
type Stamp = (u64, u64, u64, i64, i64);

impl WatchedTls {
    /// Reads the files, unless TLS is off.
    ///
    /// # Errors
    /// As [`NbdTlsSection::load`].
    pub fn load(section: NbdTlsSection) -> Result<Self, TlsError> {
        // Looked at first: what changes while it is read is read once more.
        let judged = stamps(&section);
        let tls = section.load()?;
        Ok(Self {
            section,
            tls,
            judged,
            look_every: LOOK_EVERY,
        })
    }

    /// The same, looked at more or less often.
    #[must_use]
    pub fn looking_every(mut self, look_every: Duration) -> Self {
        self.look_every = look_every;
        self
    }

    /// For the listener. It goes on with what is in force.
    #[must_use]
    pub fn tls(&self) -> Tls {
        self.tls.clone()
    }

    /// Watches the files while `serving` runs. `tell` is told what becomes of changes.
    pub async fn beside<T>(
        self,
        serving: impl Future<Output = T>,
        tell: impl FnMut(&Renewal),
    ) -> T {
        tokio::select! {
            served = serving => served,
            never = self.watch(tell) => match never {},
        }
    }

    async fn watch(mut self, mut tell: impl FnMut(&Renewal)) -> Infallible {
        let (Tls::Optional(identity) | Tls::Required(identity)) = self.tls.clone() else {
            return std::future::pending().await;
        };
        let mut before = self.judged;
        // Refused for its time alone.
        let mut early = false;
        loop {
            tokio::time::sleep(self.look_every).await;
            let now = self.off_thread(stamps).await;
            let changed = now != self.judged;
            let settled = now == before;
            before = now;
            if !settled || !(changed || early) {
                continue;
            }
            self.judged = now;
            let read = self.off_thread(|section| section.load()).await;
            let result = read.and_then(|tls| take(&identity, &tls));
            let was_early = std::mem::replace(
                &mut early,
                matches!(result, Err(TlsError::NotYetValid { .. })),
            );
            let renewal = match result {
                Ok(()) => Renewal::Taken {
                    cert: self.section.cert.clone(),
                },
                // Told already.
                Err(_) if was_early && !changed => continue,
                Err(error) => Renewal::Refused {
                    why: tls::explain(&error),
                },
            };
            tell(&renewal);
        }
    }

    /// A file system that hangs holds up nobody else.
    async fn off_thread<T: Send + 'static>(
        &self,
        read: impl FnOnce(&NbdTlsSection) -> T + Send + 'static,
    ) -> T {
        let section = self.section.clone();
        match tokio::task::spawn_blocking(move || read(&section)).await {
            Ok(read) => read,
            // The runtime stops.
            Err(_) => std::future::pending().await,
        }
    }
}

/// Puts what was read in force. A certificate out of its time is only taken in place of one that is no better.
fn take(identity: &TlsIdentity, read: &Tls) -> Result<(), TlsError> {
    let (Tls::Optional(new) | Tls::Required(new)) = read else {
        return Ok(());
    };
    match new.check_validity() {
        Err(error) if identity.check_validity().is_ok() => Err(error),
        _ => {
            identity.replace(new);
            Ok(())
        }
    }
}

fn stamps(section: &NbdTlsSection) -> Stamps {
    let stamp = |path: &Path| {
        let file = std::fs::metadata(path).ok()?;
        Some((
            file.dev(),
            file.ino(),
            file.len(),
            file.ctime(),
            file.ctime_nsec(),
        ))
    };
    [
        stamp(&section.cert),
        stamp(&section.key),
        section.client_ca.as_deref().and_then(stamp),
    ]
}
