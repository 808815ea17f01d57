//! A volume as a block device of this machine, and ext4 on it: nbdfuse makes a file of an export, a loop device a disk of the file.
//!
//! Everything is undone when a value is dropped, innermost first: unmount, detach, end nbdfuse.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::process::Child;

use super::programs::{LATER, SOON, command, run};
use crate::tools::Tool;

pub(crate) const NEEDS: [Tool; 4] = [
    Tool {
        package: "libnbd-bin",
        proof: "nbdfuse",
    },
    Tool {
        package: "fuse3",
        proof: "fusermount3",
    },
    Tool {
        package: "e2fsprogs",
        proof: "mke2fs",
    },
    Tool {
        package: "mount",
        proof: "losetup",
    },
];

/// For nbdfuse to show its file, and to end.
const FUSE_WITHIN: Duration = Duration::from_secs(10);

/// Why nothing can be mounted here; `None` if it can.
pub(crate) fn why_not() -> Option<String> {
    for device in ["/dev/fuse", "/dev/loop-control"] {
        if !Path::new(device).exists() {
            return Some(format!("this system has no {device}"));
        }
    }
    let uid = Command::new("id").arg("-u").output();
    let root = uid.is_ok_and(|output| output.stdout.trim_ascii() == b"0");
    (!root).then(|| "only root may attach loop devices and mount".to_owned())
}

/// A volume as a loop device.
#[derive(Debug)]
pub(crate) struct Attached {
    /// `/dev/loopN`; `None` once it is detached.
    device: Option<String>,
    _fuse: Fuse,
}

/// ext4 on it.
#[derive(Debug)]
pub(crate) struct Mounted {
    at: PathBuf,
    /// `None` once it is unmounted.
    on: Option<Attached>,
}

/// nbdfuse, and the directory with its one file.
#[derive(Debug)]
struct Fuse {
    child: Child,
    dir: PathBuf,
}

impl Attached {
    /// Makes a device of the export at `uri`; `dir` is for what that takes, and is made.
    pub(crate) async fn new(uri: &str, dir: &Path) -> anyhow::Result<Self> {
        let fuse = Fuse::start(uri, dir).await?;
        let file = fuse.file().display().to_string();
        let printed = run("losetup", &["--find", "--show", &file], SOON).await?;
        Ok(Self {
            device: Some(printed.trim().to_owned()),
            _fuse: fuse,
        })
    }

    fn device(&self) -> &str {
        let device = self.device.as_deref();
        device.expect("taken only by `detach` and when dropped")
    }

    pub(crate) async fn make_ext4(&self) -> anyhow::Result<()> {
        run("mke2fs", &["-q", "-t", "ext4", self.device()], LATER).await?;
        Ok(())
    }

    /// Fails if e2fsck finds anything that it would change.
    pub(crate) async fn check_ext4(&self) -> anyhow::Result<()> {
        run("e2fsck", &["-f", "-n", self.device()], LATER).await?;
        Ok(())
    }

    /// Mounts it at `at`, which is made.
    pub(crate) async fn mount(self, at: &Path) -> anyhow::Result<Mounted> {
        std::fs::create_dir_all(at)?;
        let target = at.display().to_string();
        run("mount", &["-t", "ext4", self.device(), &target], SOON).await?;
        Ok(Mounted {
            at: at.to_owned(),
            on: Some(self),
        })
    }

    /// Lets go of the export; what was written has reached the volume.
    pub(crate) async fn detach(mut self) -> anyhow::Result<()> {
        if let Some(device) = self.device.take() {
            run("losetup", &["--detach", &device], SOON).await?;
        }
        Ok(())
    }
}

impl Mounted {
    pub(crate) fn path(&self) -> &Path {
        &self.at
    }

    pub(crate) async fn unmount(mut self) -> anyhow::Result<Attached> {
        run("umount", &[&self.at.display().to_string()], LATER).await?;
        let on = self.on.take();
        on.context("unmounted already")
    }
}

impl Fuse {
    async fn start(uri: &str, dir: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let child = command("nbdfuse", &[&dir.display().to_string(), uri]).spawn()?;
        let dir = dir.to_owned();
        let mut fuse = Self { child, dir };
        let deadline = Instant::now() + FUSE_WITHIN;
        while !fuse.file().exists() {
            if let Some(status) = fuse.child.try_wait()? {
                bail!("nbdfuse ended at once: {status}");
            }
            if Instant::now() >= deadline {
                bail!("nbdfuse shows no file within {FUSE_WITHIN:?}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(fuse)
    }

    fn file(&self) -> PathBuf {
        self.dir.join(FILE)
    }
}

/// What nbdfuse calls its file in a directory.
const FILE: &str = "nbd";

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.on.is_some() && !quietly("umount", &[&self.at]) {
            // Somebody is in there. The device below goes away all the same.
            quietly("umount", &[Path::new("--lazy"), &self.at]);
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if let Some(device) = self.device.take() {
            quietly("losetup", &[Path::new("--detach"), Path::new(&device)]);
        }
    }
}

impl Drop for Fuse {
    /// nbdfuse ends when its file system is unmounted. A loop device may hold it for a moment longer.
    fn drop(&mut self) {
        let deadline = Instant::now() + FUSE_WITHIN;
        while !quietly("fusermount3", &[Path::new("-u"), &self.dir]) {
            if Instant::now() >= deadline || !matches!(self.child.try_wait(), Ok(None)) {
                quietly("umount", &[Path::new("--lazy"), &self.dir]);
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// For cleaning up: there is nobody to tell.
fn quietly(program: &str, arguments: &[&Path]) -> bool {
    let output = Command::new(program).args(arguments).output();
    output.is_ok_and(|output| output.status.success())
}
