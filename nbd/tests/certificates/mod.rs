//! Certificates of tests, in the files that `tls-certificates=DIR` of libnbd and `tls-creds-x509` of QEMU look for.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

/// When a certificate is valid.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Valid {
    Now,
    Past,
    Future,
    /// In a few seconds.
    Soon,
}

/// An authority, and a directory for what it signs.
pub(crate) struct Authority {
    dir: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Writes `ca-cert.pem`.
    pub(crate) fn new(name: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut params = params(name, &[], Valid::Now);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let cert = params.self_signed(&key).expect("signed");
        std::fs::write(dir.path().join("ca-cert.pem"), cert.pem()).expect("written");
        Self {
            dir,
            issuer: Issuer::new(params, key),
        }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.dir().join("ca-cert.pem")
    }

    /// Writes `server-cert.pem` and `server-key.pem`, for this machine.
    pub(crate) fn server(&self, valid: Valid) -> (PathBuf, PathBuf) {
        let hosts = ["localhost", "127.0.0.1"];
        let purpose = ExtendedKeyUsagePurpose::ServerAuth;
        self.sign("server", params("server", &hosts, valid), purpose)
    }

    /// Writes `client-cert.pem` and `client-key.pem`.
    pub(crate) fn client(&self, valid: Valid) -> (PathBuf, PathBuf) {
        let purpose = ExtendedKeyUsagePurpose::ClientAuth;
        self.sign("client", params("client", &[], valid), purpose)
    }

    fn sign(
        &self,
        role: &str,
        mut params: CertificateParams,
        purpose: ExtendedKeyUsagePurpose,
    ) -> (PathBuf, PathBuf) {
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![purpose];
        let key = KeyPair::generate().expect("a key");
        let signed = params.signed_by(&key, &self.issuer).expect("signed");
        let [cert, own_key] = ["cert", "key"].map(|kind| {
            let name = format!("{role}-{kind}.pem");
            self.dir().join(name)
        });
        std::fs::write(&cert, signed.pem()).expect("written");
        std::fs::write(&own_key, key.serialize_pem()).expect("written");
        (cert, own_key)
    }
}

fn params(name: &str, hosts: &[&str], valid: Valid) -> CertificateParams {
    let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(hosts).expect("names");
    params.distinguished_name.push(DnType::CommonName, name);
    let (from, to) = match valid {
        Valid::Now => (2000, 2100),
        Valid::Past => (2000, 2001),
        Valid::Future => (2099, 2100),
        Valid::Soon => (2000, 2100),
    };
    params.not_before = date_time_ymd(from, 1, 1);
    params.not_after = date_time_ymd(to, 1, 1);
    if valid == Valid::Soon {
        params.not_before = (SystemTime::now() + Duration::from_secs(6)).into();
    }
    params
}
