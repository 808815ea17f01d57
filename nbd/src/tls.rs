//! TLS of a listener: whether it is offered, and with whose certificate.
//!
//! - What cannot work is found when the files are loaded, not when the first client comes.
//! - What was loaded may be replaced while listeners run; it serves connections that come afterwards.
//! - With a file of client authorities, a client without a certificate from one of them gets no further than the TLS
//!   handshake.
//! - Cryptography is rustls's, with *ring* below it; TLS 1.2 and 1.3.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls;

/// What a listener does about TLS.
#[derive(Clone, Debug, Default)]
pub enum Tls {
    /// Refused to whoever asks.
    #[default]
    Off,
    /// For those who ask.
    Optional(TlsIdentity),
    /// Every option but `ABORT` and `STARTTLS` is refused before it.
    Required(TlsIdentity),
}

/// The files of a server's identity, all in PEM form.
#[derive(Clone, Copy, Debug)]
pub struct TlsFiles<'a> {
    /// The server's certificate, followed by those between it and its authority.
    pub cert: &'a Path,
    /// The private key of the first certificate.
    pub key: &'a Path,
    /// The authorities of clients' certificates. When there is one, a client must have a certificate.
    pub client_ca: Option<&'a Path>,
}

/// A certificate, its key, and who may connect. Clones share it, so that [`TlsIdentity::replace`] is for all of them.
#[derive(Clone)]
pub struct TlsIdentity {
    in_force: Arc<RwLock<Arc<Loaded>>>,
}

/// What was read from files.
struct Loaded {
    config: Arc<ServerConfig>,
    /// Every certificate and the file that it is from, for [`TlsIdentity::check_validity`].
    certificates: Vec<(PathBuf, CertificateDer<'static>)>,
}

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is missing or cannot be read.
    #[error("`{}` cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The answer of the file system.
        source: io::Error,
    },
    /// A file holds something else than its name in the configuration says.
    #[error("`{}` holds no {wanted} in PEM form", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        wanted: &'static str,
    },
    /// A file holds what it should, but damaged.
    #[error("the {wanted} in `{}` is malformed", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        wanted: &'static str,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// Certificate and key are not a pair.
    #[error("the key in `{}` is not that of the certificate in `{}`", key.display(), cert.display())]
    Mismatch {
        /// The file of the certificate.
        cert: PathBuf,
        /// The file of the key.
        key: PathBuf,
    },
    /// A certificate or key is well formed and of no use.
    #[error("`{}` cannot be used: {reason}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What the TLS library said.
        reason: String,
    },
    /// A certificate is no longer valid.
    #[error("the certificate in `{}` has expired{}", path.display(), since(*seconds))]
    Expired {
        /// The file.
        path: PathBuf,
        /// For how long, if that is known.
        seconds: Option<u64>,
    },
    /// A certificate is not valid yet, or the clock of this machine is behind.
    #[error("the certificate in `{}` is not valid yet", path.display())]
    NotYetValid {
        /// The file.
        path: PathBuf,
    },
}

impl TlsFiles<'_> {
    /// Reads the files and checks that they belong together. Blocks for as long as the file system does.
    ///
    /// Whether the certificates are valid now is not part of it: see [`TlsIdentity::check_validity`].
    ///
    /// # Errors
    ///
    /// The first file that is of no use.
    pub fn load(&self) -> Result<TlsIdentity, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let chain = certificates(self.cert)?;
        let key = private_key(self.key)?;
        let mut dated = dated(self.cert, &chain);
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(self.cert, &error))?;
        let builder = match self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let authorities = certificates(path)?;
                dated.extend(self::dated(path, &authorities));
                builder.with_client_cert_verifier(client_verifier(path, authorities, provider)?)
            }
        };
        let config = builder
            .with_single_cert(chain, key)
            .map_err(|error| self.misfit(&error))?;
        let loaded = Loaded {
            config: Arc::new(config),
            certificates: dated,
        };
        Ok(TlsIdentity {
            in_force: Arc::new(RwLock::new(Arc::new(loaded))),
        })
    }

    fn misfit(&self, error: &rustls::Error) -> TlsError {
        match error {
            rustls::Error::InconsistentKeys(_) => TlsError::Mismatch {
                cert: self.cert.to_owned(),
                key: self.key.to_owned(),
            },
            rustls::Error::InvalidCertificate(_) => unusable(self.cert, error),
            _ => unusable(self.key, error),
        }
    }
}

impl TlsIdentity {
    /// Whether every certificate is valid now, those of client authorities included.
    ///
    /// # Errors
    ///
    /// The first that is not.
    pub fn check_validity(&self) -> Result<(), TlsError> {
        for (path, certificate) in &self.in_force().certificates {
            check_validity(path, certificate)?;
        }
        Ok(())
    }

    /// Takes the place of what was read before, for connections that begin TLS from now on. Those that have it keep theirs, and
    /// none of their sessions is resumed: what `new` refuses was perhaps accepted before.
    pub fn replace(&self, new: &Self) {
        let new = new.in_force();
        *self
            .in_force
            .write()
            .unwrap_or_else(PoisonError::into_inner) = new;
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.in_force().config))
    }

    fn in_force(&self) -> Arc<Loaded> {
        // A pointer is never half written.
        Arc::clone(&self.in_force.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for TlsIdentity {
    /// Nothing of a key may come into a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsIdentity").finish_non_exhaustive()
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wanted = "certificate";
    let bytes = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|source| malformed(path, wanted, source))?;
    if found.is_empty() {
        let path = path.to_owned();
        return Err(TlsError::Missing { path, wanted });
    }
    Ok(found)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let wanted = "private key";
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|source| match source {
        pem::Error::NoItemsFound => TlsError::Missing {
            path: path.to_owned(),
            wanted,
        },
        source => malformed(path, wanted, source),
    })
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read {
        path: path.to_owned(),
        source,
    })
}

fn client_verifier(
    path: &Path,
    authorities: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots
            .add(authority)
            .map_err(|error| unusable(path, &error))?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| unusable(path, &error))
}

/// A chain is only built for certificates that are valid now: with no authority to end at, what is wrong with the dates is told,
/// and everything else is that no authority was found.
fn check_validity(path: &Path, certificate: &CertificateDer<'_>) -> Result<(), TlsError> {
    let parsed =
        ParsedCertificate::try_from(certificate).map_err(|error| unusable(path, &error))?;
    let algorithms = ring::default_provider().signature_verification_algorithms;
    let judged = verify_server_cert_signed_by_trust_anchor(
        &parsed,
        &RootCertStore::empty(),
        &[],
        UnixTime::now(),
        algorithms.all,
    );
    let path = path.to_owned();
    match judged {
        Err(rustls::Error::InvalidCertificate(CertificateError::Expired)) => {
            let seconds = None;
            Err(TlsError::Expired { path, seconds })
        }
        Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext {
            time,
            not_after,
        })) => {
            let seconds = Some(time.as_secs().saturating_sub(not_after.as_secs()));
            Err(TlsError::Expired { path, seconds })
        }
        Err(rustls::Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        )) => Err(TlsError::NotYetValid { path }),
        _ => Ok(()),
    }
}

fn dated(
    path: &Path,
    certificates: &[CertificateDer<'static>],
) -> Vec<(PathBuf, CertificateDer<'static>)> {
    let each = certificates.iter();
    each.map(|certificate| (path.to_owned(), certificate.clone()))
        .collect()
}

fn malformed(path: &Path, wanted: &'static str, source: pem::Error) -> TlsError {
    TlsError::Malformed {
        path: path.to_owned(),
        wanted,
        source,
    }
}

fn unusable(path: &Path, error: &dyn fmt::Display) -> TlsError {
    TlsError::Unusable {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}

fn since(seconds: Option<u64>) -> String {
    match seconds.map(|seconds| seconds / 86_400) {
        None | Some(0) => String::new(),
        Some(1) => " a day ago".to_owned(),
        Some(days) => format!(" {days} days ago"),
    }
}
