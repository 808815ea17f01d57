//! A place where a test may mount file systems and make networks: namespaces of its own, which end with it.
//!
//! The test program starts itself again, with one test, under `unshare`: new mount, network and process namespaces. Whatever
//! is mounted, made or started there is gone when that process ends, however it ends.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::tools::require;

const INSIDE: &str = "MAINSTAY_TEST_SANDBOX";
/// Asks to keep the directory of a cluster whose test failed.
pub(crate) const KEEP: &str = "MAINSTAY_TEST_KEEP";

/// Runs the test `name` again in namespaces of its own, and fails if that fails. True if there is nothing left to do here;
/// false if this process is the one inside, which goes on.
pub(crate) fn elsewhere(name: &str, tools: &[&str]) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        command("ip", &["link", "set", "lo", "up"]);
        return false;
    }
    if !tools
        .iter()
        .chain(&["unshare", "ip"])
        .all(|tool| require(tool))
        || !is_allowed()
    {
        return true;
    }
    // Removed from out here: inside, what is mounted in it would be in the way until the end.
    let mut dir = tempfile::tempdir().expect("a directory");
    let output = unshare()
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .env("TMPDIR", dir.path())
        .output()
        .expect("started");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    dir.disable_cleanup(!output.status.success() && std::env::var_os(KEEP).is_some());
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "`{name}` ran nothing: {text}");
    println!("{text}");
    true
}

/// A process that ends takes everything in its namespaces with it, and ends with us.
fn unshare() -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--net", "--pid", "--fork", "--kill-child"])
        .arg("--mount-proc")
        .stdin(Stdio::null());
    command
}

fn is_allowed() -> bool {
    let tried = unshare().arg("true").output();
    if tried.is_ok_and(|tried| tried.status.success()) {
        return true;
    }
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "this user may not make namespaces; CI must run as root"
    );
    eprintln!("skipped: only root may make the namespaces that this test needs");
    false
}

/// Runs a system tool that must succeed.
#[track_caller]
pub(crate) fn command(program: &str, args: &[&str]) {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect(program);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {said}");
}

/// Mounts an empty file system in memory of so many MiB.
pub(crate) fn mount_small(at: &Path, mib: u32) {
    std::fs::create_dir_all(at).expect("a directory");
    let size = format!("size={mib}m");
    command("mount", &["-t", "tmpfs", "-o", &size, "none", text(at)]);
}

/// Mounts a real ext4 file system of so many MiB, kept in `file`.
pub(crate) fn mount_ext4(file: &Path, at: &Path, mib: u64) {
    std::fs::create_dir_all(at).expect("a directory");
    let image = std::fs::File::create(file).expect("a file");
    image.set_len(mib << 20).expect("sparse");
    command("mke2fs", &["-q", "-t", "ext4", text(file)]);
    command("mount", &["-o", "loop", text(file), text(at)]);
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}
