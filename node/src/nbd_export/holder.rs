//! The name under which the NBD connections of one host attach.

use std::net::IpAddr;
use std::sync::LazyLock;

/// All connections of one host share it. An IPv4 address is the same one when it comes wrapped in an IPv6 one; a loopback address
/// is the same on every machine, so that it stands for the machine that it was seen on.
pub(super) fn attachment_name(peer: IpAddr) -> String {
    let peer = peer.to_canonical();
    if peer.is_loopback() {
        local_name()
    } else {
        format!("nbd:{peer}")
    }
}

/// The name of clients on this machine, which come over the loopback address.
#[must_use]
pub fn local_name() -> String {
    static MACHINE: LazyLock<String> = LazyLock::new(|| {
        let line = |path| std::fs::read_to_string(path).unwrap_or_default();
        machine(&line("/proc/sys/kernel/hostname"), &line("/etc/machine-id"))
    });
    format!("nbd:local@{}", *MACHINE)
}

/// Two machines may have been given one name, and a container may have no id.
fn machine(hostname: &str, id: &str) -> String {
    let hostname = match hostname.trim() {
        "" => "unknown",
        name => name,
    };
    match id.trim().get(..8) {
        Some(id) => format!("{hostname}-{id}"),
        None => hostname.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_of_one_host_share_a_name() {
        let name = |ip: &str| attachment_name(ip.parse().expect("an address"));
        assert_eq!(name("10.0.0.1"), "nbd:10.0.0.1");
        assert_eq!(name("::ffff:10.0.0.1"), "nbd:10.0.0.1");
        assert_eq!(name("fe80::1"), "nbd:fe80::1");
        for loopback in ["127.0.0.1", "127.9.8.7", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(name(loopback), local_name());
        }
    }

    #[test]
    fn a_loopback_address_is_not_the_same_on_two_machines() {
        let one = machine("a\n", "0123456789abcdef\n");
        assert_eq!(one, "a-01234567");
        assert_ne!(one, machine("b\n", "0123456789abcdef\n"));
        assert_ne!(one, machine("a\n", "f123456789abcdef\n"));
        assert_eq!(machine("a\n", ""), "a");
        assert_eq!(machine("", "short"), "unknown");
    }
}
