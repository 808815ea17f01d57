//! The programs that interoperability tests and the soak drive: installs what is missing where that is allowed.
//!
//! Without them those tests have nothing to talk to. On a developer's machine that is said plainly and the gate goes
//! on; where `CI` is set it fails, because there a test that did not run must not look like one that passed.

use std::path::Path;
use std::process::Command;

use crate::report::Outcome;

/// A Debian package, and a file that is there when it is installed.
#[derive(Debug)]
pub(crate) struct Tool {
    pub(crate) package: &'static str,
    pub(crate) proof: &'static str,
}

const TOOLS: [Tool; 10] = [
    Tool {
        package: "libnbd-bin",
        proof: "nbdinfo",
    },
    Tool {
        package: "python3-libnbd",
        proof: "/usr/lib/python3/dist-packages/nbd.py",
    },
    Tool {
        package: "python3-grpcio",
        proof: "/usr/lib/python3/dist-packages/grpc/__init__.py",
    },
    Tool {
        package: "python3-protobuf",
        proof: "/usr/lib/python3/dist-packages/google/protobuf/__init__.py",
    },
    Tool {
        package: "qemu-utils",
        proof: "qemu-img",
    },
    Tool {
        package: "fio",
        proof: "fio",
    },
    Tool {
        package: "e2fsprogs",
        proof: "mke2fs",
    },
    Tool {
        package: "iproute2",
        proof: "ip",
    },
    Tool {
        package: "nftables",
        proof: "nft",
    },
    Tool {
        package: "strace",
        proof: "strace",
    },
];

/// Makes sure of all of them.
pub(crate) fn install() -> anyhow::Result<Outcome> {
    let still = install_of(TOOLS.iter());
    if still.is_empty() {
        eprintln!("all tools are there");
        return Ok(Outcome::Passed);
    }
    let still = still.join(" ");
    eprintln!(
        "missing: {still}\nTests that need them are left out. As root: apt-get install {still}"
    );
    if in_ci() {
        return Ok(Outcome::Failed);
    }
    Ok(Outcome::PassedWith(format!("without {still}")))
}

/// Makes sure of `tools` as far as that is allowed; answers with the packages that are still missing.
pub(crate) fn install_of<'a>(tools: impl Iterator<Item = &'a Tool> + Clone) -> Vec<&'static str> {
    let wanted = missing(tools.clone());
    if wanted.is_empty() {
        return wanted;
    }
    match why_not() {
        Some(reason) => eprintln!("cannot install {}: {reason}", wanted.join(" ")),
        None => apt_get(&wanted),
    }
    missing(tools)
}

pub(crate) fn missing<'a>(tools: impl Iterator<Item = &'a Tool>) -> Vec<&'static str> {
    let absent = tools.filter(|tool| !is_there(tool.proof));
    absent.map(|tool| tool.package).collect()
}

fn is_there(proof: &str) -> bool {
    if proof.starts_with('/') {
        return Path::new(proof).exists();
    }
    // System tools may lie outside an ordinary user's path.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/sbin"].map(Into::into);
    std::env::split_paths(&path)
        .chain(more)
        .any(|dir| dir.join(proof).exists())
}

/// Why packages cannot be installed here; `None` if they can.
fn why_not() -> Option<&'static str> {
    if !is_there("apt-get") {
        return Some("this system has no apt-get");
    }
    let uid = Command::new("id").arg("-u").output();
    let root = uid.is_ok_and(|output| output.stdout.trim_ascii() == b"0");
    (!root).then_some("only root may; run this once as root")
}

/// The outcome is seen by looking for the tools again.
fn apt_get(packages: &[&str]) {
    eprintln!("installing with apt-get: {}", packages.join(" "));
    let run = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(args).env("DEBIAN_FRONTEND", "noninteractive");
        command.status().is_ok_and(|status| status.success())
    };
    let mut install = vec!["install", "--yes", "--no-install-recommends"];
    install.extend(packages);
    // Package lists may be there already, and updating them may fail where installing works.
    if !run(&install) && run(&["update"]) {
        run(&install);
    }
}

pub(crate) fn in_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| value == "true" || value == "1")
}
