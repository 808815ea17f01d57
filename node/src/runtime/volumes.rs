//! Copies on this node: opened at the start, formatted when a register says that one belongs here, dropped when the
//! volume is deleted.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mainstay_storage::engine::run_on;
use mainstay_types::{Epoch, Incarnation, Lineage, Register, VolumeId, VolumeSpec};
use mainstay_volume::store::{CopyError, create_copy};
use tokio::sync::oneshot;

use super::Node;
use super::actor::{self, ToVolume, VolumeHandle};

/// Where the copy of one lineage of a volume lies.
#[must_use]
pub fn copy_dir(node: &Node, volume: VolumeId, lineage: Lineage) -> PathBuf {
    volumes_dir(&node.settings.data_dir).join(format!("{volume}-{lineage}"))
}

/// Where a full copy lies while it is being received.
#[must_use]
pub fn incoming_dir(node: &Node, volume: VolumeId, lineage: Lineage) -> PathBuf {
    volumes_dir(&node.settings.data_dir).join(format!("{volume}-{lineage}{INCOMING}"))
}

/// Ends the name of a copy that is being received.
const INCOMING: &str = ".incoming";

/// Ends the name of a directory that is no copy and was set aside.
const UNFINISHED: &str = ".unfinished";

fn volumes_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("volumes")
}

/// Opens every copy in the data directory. A copy that does not open is reported and left as it is.
///
/// # Errors
/// The directory cannot be listed.
pub async fn open_all(node: &Arc<Node>) -> std::io::Result<()> {
    let dir = volumes_dir(&node.settings.data_dir);
    std::fs::create_dir_all(&dir)?;
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&dir)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    paths.sort();
    for path in paths.into_iter().filter(|path| path.is_dir()) {
        let name = path.to_string_lossy().into_owned();
        if name.ends_with(INCOMING) {
            std::fs::remove_dir_all(&path)?;
            continue;
        }
        if name.ends_with(UNFINISHED) {
            continue;
        }
        if !path.join("meta").exists() {
            // Most likely formatting did not end, and nothing was ever promised for it. But a copy that lost this
            // one file would look the same: it is set aside, not removed.
            let aside = PathBuf::from(format!("{name}{UNFINISHED}"));
            tracing::warn!(to = %aside.display(), "setting aside a copy without durable facts");
            if aside.exists() {
                std::fs::remove_dir_all(&aside)?;
            }
            std::fs::rename(&path, &aside)?;
            continue;
        }
        match actor::open(node, path.clone()).await {
            Ok(handle) => host(node, handle),
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::from(error));
                tracing::error!(path = %path.display(), error, "this copy does not open; it is left as it is");
                node.events.copy_failed(node, &path, &error);
            }
        }
    }
    Ok(())
}

fn host(node: &Node, handle: VolumeHandle) {
    let volume = handle.spec.name.id();
    node.volumes
        .write()
        .expect("no panic while the lock is held")
        .insert(volume, handle);
}

/// Makes this node's copies what a decided register value says.
pub(super) fn reconcile(node: &Arc<Node>, register: Register) {
    let volume = register.spec.name.id();
    let hosted = node.volume(volume);
    let stale = hosted
        .as_ref()
        .is_some_and(|handle| handle.lineage != register.lineage);
    if let Some(handle) = hosted.filter(|_| register.deleted || stale) {
        let node = node.clone();
        node.handle.clone().spawn(async move {
            drop_copy(&node, handle).await;
            // The name may have been created anew: then a copy of the new volume belongs here.
            reconcile(&node, register);
        });
        return;
    }
    let wanted = node.settings.data && register.policy.placement.contains(&node.settings.node);
    if wanted && !register.deleted && node.volume(volume).is_none() {
        let node = node.clone();
        node.handle.clone().spawn(async move {
            if let Err(error) =
                format_copy(&node, &register.spec, register.lineage, Epoch::ZERO).await
            {
                tracing::warn!(volume = %register.spec.name, error = %format!("{:#}", anyhow::Error::from(error)),
                    "no copy could be made here");
            }
        });
    }
}

/// Formats an empty copy, unless there is one, and hosts it.
///
/// # Errors
/// The disk's.
pub async fn format_copy(
    node: &Arc<Node>,
    spec: &VolumeSpec,
    lineage: Lineage,
    sealed: Epoch,
) -> Result<(), CopyError> {
    let volume = spec.name.id();
    if !node
        .opening
        .lock()
        .expect("no panic while the lock is held")
        .insert(volume)
    {
        return Ok(());
    }
    let result = format_and_open(node, spec, lineage, sealed).await;
    node.opening
        .lock()
        .expect("no panic while the lock is held")
        .remove(&volume);
    result
}

async fn format_and_open(
    node: &Arc<Node>,
    spec: &VolumeSpec,
    lineage: Lineage,
    sealed: Epoch,
) -> Result<(), CopyError> {
    if node
        .volume(spec.name.id())
        .is_some_and(|handle| handle.lineage == lineage)
    {
        return Ok(());
    }
    let dir = copy_dir(node, spec.name.id(), lineage);
    if dir.join("meta").exists() {
        // A copy that did not open: it is kept, and not formatted over.
        return Ok(());
    }
    let io = |source| CopyError::Io {
        path: dir.clone(),
        source,
    };
    if dir.exists() {
        std::fs::remove_dir_all(&dir).map_err(io)?;
    }
    let (config, engine, spec) = (node.copy_config(), node.settings.engine, spec.clone());
    let (path, incarnation) = (dir.clone(), Incarnation(node.random()));
    let made = tokio::task::spawn_blocking(move || {
        run_on(engine, |disk| async move {
            create_copy(&disk, &path, &config, &spec, lineage, incarnation, sealed).await
        })
    });
    made.await
        .map_err(|_| io(std::io::Error::other("formatting was interrupted")))?
        .map_err(io)??;
    let handle = actor::open(node, dir).await?;
    tracing::info!(volume = %handle.spec.name, "formatted an empty copy");
    host(node, handle);
    Ok(())
}

/// Puts a full copy that was received in the place of the one that is here, and opens it.
///
/// # Errors
/// The disk's; the copy that was here is gone, and the primary sends another.
pub async fn adopt_copy(node: &Arc<Node>, register: &Register) -> anyhow::Result<()> {
    let volume = register.spec.name.id();
    if !node
        .opening
        .lock()
        .expect("no panic while the lock is held")
        .insert(volume)
    {
        anyhow::bail!("the copy here is being opened");
    }
    let replaced = replace_copy(node, register).await;
    node.opening
        .lock()
        .expect("no panic while the lock is held")
        .remove(&volume);
    host(node, replaced?);
    Ok(())
}

async fn replace_copy(node: &Arc<Node>, register: &Register) -> anyhow::Result<VolumeHandle> {
    let volume = register.spec.name.id();
    let hosted = node
        .volumes
        .write()
        .expect("no panic while the lock is held")
        .remove(&volume);
    if let Some(handle) = hosted {
        stop_one(&handle, false).await;
    }
    let dir = copy_dir(node, volume, register.lineage);
    if dir.exists() {
        std::fs::remove_dir_all(&dir)?;
    }
    std::fs::rename(incoming_dir(node, volume, register.lineage), &dir)?;
    std::fs::File::open(volumes_dir(&node.settings.data_dir))?.sync_all()?;
    Ok(actor::open(node, dir).await?)
}

/// Stops a copy and removes its files: its volume was deleted.
async fn drop_copy(node: &Arc<Node>, handle: VolumeHandle) {
    let volume = handle.spec.name.id();
    node.volumes
        .write()
        .expect("no panic while the lock is held")
        .remove(&volume);
    stop_one(&handle, false).await;
    let dir = copy_dir(node, volume, handle.lineage);
    match std::fs::remove_dir_all(&dir) {
        Ok(()) => {
            tracing::info!(volume = %handle.spec.name, "removed the copy of a deleted volume")
        }
        Err(error) => {
            tracing::warn!(path = %dir.display(), %error, "the copy of a deleted volume is left")
        }
    }
}

async fn stop_one(handle: &VolumeHandle, hand_over: bool) {
    let (done, stopped) = oneshot::channel();
    if handle.to.send(ToVolume::Stop { done, hand_over }).is_ok() {
        let _gone = stopped.await;
    }
}

/// Stops every copy: primaries hand over first.
pub async fn stop_all(node: &Arc<Node>) {
    let handles = node.volumes();
    let stops = handles.iter().map(|handle| stop_one(handle, true));
    futures_util::future::join_all(stops).await;
    node.volumes
        .write()
        .expect("no panic while the lock is held")
        .clear();
}
