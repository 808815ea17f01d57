//! `[nbd.tls]`: TLS of the NBD listener.

use std::path::PathBuf;

use clap::ValueEnum;
use mainstay_nbd::{Tls, TlsError, TlsFiles};
use serde::Deserialize;

/// What an NBD listener does about TLS.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum TlsMode {
    /// Refuses it.
    Off,
    /// Leaves it to the client.
    Optional,
    /// Serves nobody without it.
    Required,
}

/// `[nbd.tls]`: TLS of the NBD listener. Without the section there is none.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NbdTlsSection {
    /// Whether clients may use TLS, or have to.
    pub mode: TlsMode,
    /// The server's certificate and those between it and its authority, in PEM form.
    pub cert: PathBuf,
    /// The private key of the certificate, in PEM form.
    pub key: PathBuf,
    /// The authorities of clients' certificates, in PEM form. With it, a client must have a certificate.
    #[serde(default)]
    pub client_ca: Option<PathBuf>,
}

impl NbdTlsSection {
    /// Reads the files, unless TLS is off.
    ///
    /// # Errors
    /// A file is of no use. That a certificate is out of its time is none: see [`expiry`].
    pub fn load(&self) -> Result<Tls, TlsError> {
        let files = TlsFiles {
            cert: &self.cert,
            key: &self.key,
            client_ca: self.client_ca.as_deref(),
        };
        Ok(match self.mode {
            TlsMode::Off => Tls::Off,
            TlsMode::Optional => Tls::Optional(files.load()?),
            TlsMode::Required => Tls::Required(files.load()?),
        })
    }
}

/// Whether the certificates are valid now.
///
/// # Errors
/// The first that is not.
pub fn expiry(tls: &Tls) -> Result<(), TlsError> {
    match tls {
        Tls::Off => Ok(()),
        Tls::Optional(identity) | Tls::Required(identity) => identity.check_validity(),
    }
}

/// The key of the section whose file an error is about.
pub(super) fn key_of(section: &NbdTlsSection, error: &TlsError) -> &'static str {
    let (TlsError::Read { path, .. }
    | TlsError::Missing { path, .. }
    | TlsError::Malformed { path, .. }
    | TlsError::Mismatch { key: path, .. }
    | TlsError::Unusable { path, .. }
    | TlsError::Expired { path, .. }
    | TlsError::NotYetValid { path }) = error;
    if Some(path) == section.client_ca.as_ref() {
        "client_ca"
    } else if *path == section.cert {
        "cert"
    } else {
        "key"
    }
}

/// What to do about an error.
#[must_use]
pub fn advice(error: &TlsError) -> &'static str {
    match error {
        TlsError::Read { .. } => "put the file there, or let this user read it",
        TlsError::Missing { .. } | TlsError::Malformed { .. } => {
            "write it as PEM (`-----BEGIN ...`); `openssl x509 -in FILE` or `openssl pkey -in FILE` shows what is there"
        }
        TlsError::Mismatch { .. } => "use the key with which this certificate was requested",
        TlsError::Unusable { .. } => {
            "have it issued anew: X.509 version 3, an ECDSA, Ed25519 or RSA key of at least 2048 bits"
        }
        TlsError::Expired { .. } => {
            "have a new one issued, or correct the clock of this machine; clients refuse this one"
        }
        TlsError::NotYetValid { .. } => {
            "correct the clock of this machine, or wait; clients refuse it until then"
        }
    }
}

/// An error with its cause and what to do about it.
#[must_use]
pub fn explain(error: &TlsError) -> String {
    format!("{}; {}", with_cause(error), advice(error))
}

/// An error with its cause.
pub(super) fn with_cause(error: &TlsError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
