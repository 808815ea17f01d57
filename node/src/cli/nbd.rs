//! The command line of `mainstay nbd`.

use std::path::PathBuf;

use clap::Args;
use mainstay_types::VolumeName;

use crate::config::{ListenAddr, NbdTlsSection, TlsMode};
use crate::locate::ClusterArgs;

/// Of `nbd`.
#[derive(Debug, Clone, Args)]
pub struct NbdArgs {
    /// The block volume
    pub volume: VolumeName,

    /// Where to listen
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:10809", value_parser = parse_listen)]
    pub listen: ListenAddr,

    /// For reading: whoever holds the volume keeps it, and what they write is seen here
    #[arg(long)]
    pub read_only: bool,

    /// The first client takes the volume over from the host that holds it: what that one has not been answered is void
    #[arg(long, conflicts_with = "read_only")]
    pub takeover: bool,

    /// TLS.
    #[command(flatten)]
    pub tls: NbdTlsArgs,

    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// TLS of `nbd`.
#[derive(Debug, Clone, Args)]
pub struct NbdTlsArgs {
    /// Whether clients may use TLS, or have to; they have to unless this says otherwise, if there is a certificate
    #[arg(long = "tls", value_name = "MODE", value_enum, requires_ifs = [("optional", "tls_cert"), ("required", "tls_cert")])]
    pub tls_mode: Option<TlsMode>,

    /// The server's certificate, followed by those between it and its authority (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// The private key of the certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// The authorities of clients' certificates (PEM); with it, a client must have one
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_client_ca: Option<PathBuf>,
}

impl NbdTlsArgs {
    /// As the configuration file of a node has it.
    #[must_use]
    pub fn section(self) -> Option<NbdTlsSection> {
        Some(NbdTlsSection {
            mode: self.tls_mode.unwrap_or(TlsMode::Required),
            cert: self.tls_cert?,
            key: self.tls_key?,
            client_ca: self.tls_client_ca,
        })
    }
}

fn parse_listen(text: &str) -> Result<ListenAddr, crate::config::AddressError> {
    ListenAddr::try_from(text.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn a_certificate_without_more_words_makes_tls_required() {
        let parse = |more: &[&str]| {
            let words = [&["mainstay", "nbd", "disk"], more].concat();
            match Cli::try_parse_from(words).ok()?.command {
                Command::Nbd(args) => Some(args.tls.section().map(|section| section.mode)),
                other => panic!("{other:?}"),
            }
        };
        let files = ["--tls-cert", "c", "--tls-key", "k"];
        assert_eq!(parse(&[]), Some(None));
        assert_eq!(parse(&files), Some(Some(TlsMode::Required)));
        let optional = [&files[..], &["--tls", "optional"]].concat();
        assert_eq!(parse(&optional), Some(Some(TlsMode::Optional)));
        assert_eq!(parse(&["--tls", "off"]), Some(None));
        for incomplete in [
            &["--tls", "required"][..],
            &["--tls-cert", "c"],
            &["--tls-key", "k"],
            &["--tls-client-ca", "a"],
        ] {
            assert_eq!(parse(incomplete), None, "{incomplete:?}");
        }
    }
}
