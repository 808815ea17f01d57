//! A tree of files that differ in size and content: the project's own sources, packed once.

use std::path::{Path, PathBuf};

use super::programs::{SOON, run};

/// Folders of the workspace; what is built in them is not.
const FOLDERS: [&str; 8] = [
    "benches",
    "client",
    "docs",
    "nbd",
    "node",
    "replication",
    "sim",
    "storage",
];

/// A packed tree, and the same tree unpacked beside it for comparison.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) archive: PathBuf,
    pub(crate) original: PathBuf,
}

impl Tree {
    /// Packs the sources of the workspace at `root` into `dir`.
    pub(crate) async fn pack(root: &Path, dir: &Path) -> anyhow::Result<Self> {
        let tree = Self {
            archive: dir.join("tree.tar"),
            original: dir.join("tree"),
        };
        let (root, archive) = (
            root.display().to_string(),
            tree.archive.display().to_string(),
        );
        let mut arguments = vec!["--create", "--file", &archive, "--directory", &root];
        arguments.extend(["--exclude=target", "--exclude=.git"]);
        arguments.extend(FOLDERS);
        run("tar", &arguments, SOON).await?;
        std::fs::create_dir(&tree.original)?;
        tree.unpack(&tree.original).await?;
        Ok(tree)
    }

    /// Unpacks it into `to`, which is there.
    pub(crate) async fn unpack(&self, to: &Path) -> anyhow::Result<()> {
        let (archive, to) = (self.archive.display().to_string(), to.display().to_string());
        let arguments = ["--extract", "--file", &archive, "--directory", &to];
        run("tar", &arguments, super::programs::LATER).await?;
        Ok(())
    }

    /// Fails unless `copy` has the same files with the same bytes.
    pub(crate) async fn compare(&self, copy: &Path) -> anyhow::Result<()> {
        let original = self.original.display().to_string();
        let copy = copy.display().to_string();
        run("diff", &["--recursive", "--brief", &original, &copy], SOON).await?;
        Ok(())
    }
}
