//! Addresses as they stand in a configuration file.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where this node listens: an IP address and a port. Port 0 lets the system choose.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ListenAddr(pub SocketAddr);

/// Where others reach a node: a host name or an IP address, and a port.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPort {
    host: String,
    port: u16,
}

/// A text that is not an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not an address to listen on.
    #[error(
        "`{0}` is not an address to listen on; write an IP address and a port, such as \"10.0.0.1:7400\" or \"[::1]:7400\""
    )]
    Listen(String),
    /// Not an address to connect to.
    #[error(
        "`{0}` is not an address to connect to; write host:port, such as \"10.0.0.1:7400\" or \"alpha.example:7400\""
    )]
    Connect(String),
}

impl HostPort {
    /// The host part, without the brackets of an IPv6 address.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `port` on `host`.
    #[must_use]
    pub fn new(host: &str, port: u16) -> Self {
        Self {
            host: host.to_owned(),
            port,
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for HostPort {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let bad = || AddressError::Connect(text.to_owned());
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self::new(&address.ip().to_string(), address.port()));
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        let port = port.parse().map_err(|_| bad())?;
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        if host.is_empty() || !host.bytes().all(legal) {
            return Err(bad());
        }
        Ok(Self::new(host, port))
    }
}

impl TryFrom<String> for HostPort {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl From<HostPort> for String {
    fn from(address: HostPort) -> Self {
        address.to_string()
    }
}

impl ListenAddr {
    /// Whether two listeners on these addresses would be in each other's way.
    #[must_use]
    pub fn collides(self, other: Self) -> bool {
        let (a, b) = (self.0, other.0);
        let any = |ip: IpAddr| ip.is_unspecified();
        a.port() != 0 && a.port() == b.port() && (a.ip() == b.ip() || any(a.ip()) || any(b.ip()))
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<String> for ListenAddr {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
            .map(Self)
            .map_err(|_| AddressError::Listen(text))
    }
}

impl From<ListenAddr> for String {
    fn from(address: ListenAddr) -> Self {
        address.to_string()
    }
}
