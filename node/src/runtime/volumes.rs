//! Copies on this node: opened at the start, formatted when a register says that one belongs here, dropped when the
//! volume is deleted, set aside or taken over when a forced promotion began a new history.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mainstay_replication::{CopyFate, CopyNames, fate_of_copy};
use mainstay_storage::engine::{may_pass, run_on};
use mainstay_types::{Epoch, Incarnation, Lineage, Register, VolumeId, VolumeSpec};
use mainstay_volume::store::{CopyError, NewCopy, create_copy};
use tokio::sync::oneshot;

use super::Node;
use super::actor;
use super::handle::{ToVolume, VolumeHandle};

/// Where the copy of one lineage of a volume lies.
#[must_use]
pub fn copy_dir(node: &Node, volume: VolumeId, lineage: Lineage) -> PathBuf {
    volumes_dir(&node.settings.data_dir).join(format!("{volume}-{lineage}"))
}

/// Where a full copy lies while it is being received, apart from any other.
#[must_use]
pub fn incoming_dir(
    node: &Node,
    volume: VolumeId,
    lineage: Lineage,
    incarnation: Incarnation,
) -> PathBuf {
    let name = format!("{volume}-{lineage}-{incarnation}{INCOMING}");
    volumes_dir(&node.settings.data_dir).join(name)
}

/// How often what the machine refused for now is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Ends the name of a copy that is being received.
const INCOMING: &str = ".incoming";

/// In the name of a copy of a history that a forced promotion ended, before the epoch that ended it.
const ASIDE: &str = ".aside-";

/// Ends the name of a copy that is being removed: a part of one must never be taken for a copy.
const REMOVED: &str = ".removed";

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
        if name.ends_with(INCOMING) || name.ends_with(REMOVED) {
            std::fs::remove_dir_all(&path)?;
            continue;
        }
        if name.ends_with(UNFINISHED) || name.contains(ASIDE) {
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
        open_here(node, path).await;
    }
    Ok(())
}

/// Opens a copy that lies in the data directory, at once or once the machine lets it.
async fn open_here(node: &Arc<Node>, path: PathBuf) {
    let volume = volume_in(&path);
    // Links are up by now, and a log may take seconds to read. Until the copy is open this node must not say that it has none, as nobody else
    // may have what this one holds; and no full copy may take its place, or this one would be read from a directory that is gone, and serve from it.
    let opening = match volume {
        Some(volume) => match Opening::begin(node, volume) {
            Some(opening) if node.volume(volume).is_none() => Some(opening),
            // Somebody was here first, with another copy.
            _ => return,
        },
        None => None,
    };
    let error = match actor::open(node, path.clone()).await {
        Ok(handle) => {
            host(node, handle.clone());
            drop(opening);
            return go_on(node, handle.spec.name.id(), Some(&handle));
        }
        Err(error) => error,
    };
    let passes = error.may_pass();
    let told = format!("{:#}", anyhow::Error::from(error));
    match opening {
        Some(opening) if passes => {
            tracing::warn!(path = %path.display(), error = told, "this copy does not open for now: it is tried again");
            node.events.copy_waits(&path, &told);
            node.handle.spawn(open_later(opening, path));
        }
        _ => {
            tracing::error!(path = %path.display(), error = told, "this copy does not open; it is left as it is");
            node.events.copy_failed(node, &path, &told);
        }
    }
}

/// Tries until the copy opens, cannot be opened for another reason, or the node stops.
async fn open_later(opening: Opening, path: PathBuf) {
    let node = opening.node.clone();
    while again(&node).await {
        match actor::open(&node, path.clone()).await {
            Ok(handle) => {
                tracing::info!(volume = %handle.spec.name, "the copy opened after all");
                let volume = handle.spec.name.id();
                host(&node, handle.clone());
                drop(opening);
                return go_on(&node, volume, Some(&handle));
            }
            Err(error) if error.may_pass() => {}
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::from(error));
                tracing::error!(path = %path.display(), error, "this copy does not open; it is left as it is");
                return node.events.copy_failed(&node, &path, &error);
            }
        }
    }
}

/// Waits for the next try of what the machine refused for now; false once the node stops.
async fn again(node: &Node) -> bool {
    tokio::select! {
        () = node.until_stopping() => false,
        () = tokio::time::sleep(AGAIN) => true,
    }
}

/// See [`CopyError::may_pass`].
fn passes(error: &anyhow::Error) -> bool {
    let mut causes = error.chain();
    let io = causes.find_map(|cause| cause.downcast_ref::<std::io::Error>());
    io.is_some_and(may_pass)
}

/// Whose copy lies in a directory, by its name: see [`copy_dir`].
fn volume_in(path: &Path) -> Option<VolumeId> {
    let name = path.file_name()?.to_str()?;
    name.split_once('-')?.0.parse().ok()
}

fn host(node: &Node, handle: VolumeHandle) {
    let volume = handle.spec.name.id();
    node.volumes
        .write()
        .expect("no panic while the lock is held")
        .insert(volume, handle.clone());
    // It may have been opened under witnesses that were replaced meanwhile.
    handle.tell(mainstay_volume::Event::Witnesses(node.witnesses()));
}

/// Makes this node's copies what a decided register value says.
pub(super) fn reconcile(node: &Arc<Node>, register: Register) {
    let hosted = node.volume(register.spec.name.id());
    let fate = hosted.as_ref().map(|handle| {
        let copy = CopyNames {
            node: node.settings.node,
            incarnation: handle.incarnation,
            lineage: handle.lineage,
            log_lineage: handle.log_lineage,
        };
        fate_of_copy(copy, &register)
    });
    match (hosted, fate) {
        (Some(handle), Some(fate @ (CopyFate::Drop | CopyFate::SetAside | CopyFate::Adopt))) => {
            then(node, register, |node, register| {
                end_history(node, handle, fate, register)
            });
        }
        (Some(_), _) => {}
        (None, _) => {
            if wants_copy(node, &register) {
                then(node, register, make_copy);
            }
        }
    }
}

/// The same for what is decided by now: while a copy was being opened, made or replaced that found none here. `own` is the copy that
/// is there if nobody else put one in its place; another is the business of whoever did, and of a register that may not be decided yet.
fn go_on(node: &Arc<Node>, volume: VolumeId, own: Option<&VolumeHandle>) {
    let hosted = node.volume(volume);
    let other = |hosted: &VolumeHandle| !own.is_some_and(|own| own.to.same_channel(&hosted.to));
    if let Some(register) = node.register(volume)
        && !hosted.as_ref().is_some_and(other)
    {
        reconcile(node, register);
    }
}

fn wants_copy(node: &Node, register: &Register) -> bool {
    let placed = register.policy.placement.contains(&node.settings.node);
    node.settings.data && placed && !register.deleted
}

/// Ends a copy's part in its history, as `fate` says, and goes on with what is decided by then.
async fn end_history(node: Arc<Node>, handle: VolumeHandle, fate: CopyFate, register: Register) {
    let volume = handle.spec.name.id();
    let Some(opening) = Opening::begin(&node, volume) else {
        if again(&node).await {
            go_on(&node, volume, Some(&handle));
        }
        return;
    };
    let hosted = node.volume(volume);
    if !hosted.is_some_and(|hosted| hosted.to.same_channel(&handle.to)) {
        // Another copy took its place.
        return;
    }
    unhost(&node, volume);
    stop_one(&handle, false).await;
    let (ended, own) = match fate {
        CopyFate::Adopt => {
            let adopted = adopt_lineage(&node, &handle, &register).await;
            (adopted.is_some(), adopted)
        }
        CopyFate::SetAside => (set_aside(&node, &handle, &register).await, None),
        // The name may have been created anew: then a copy of the new volume belongs here.
        CopyFate::Drop | CopyFate::Keep => (drop_copy(&node, &handle).await, None),
    };
    drop(opening);
    if ended {
        go_on(&node, volume, own.as_ref());
    }
}

/// Makes the empty copy that a register wants here. What the machine refuses for now is tried again until there is one, or something
/// else is decided: that has a task of its own.
async fn make_copy(node: Arc<Node>, register: Register) {
    let volume = register.spec.name.id();
    let (lineage, log_lineage) = (register.lineage, register.log_lineage);
    let mut told = false;
    loop {
        let made = format_copy(&node, &register.spec, lineage, log_lineage, Epoch::ZERO).await;
        if let Some(hosted) = node.volume(volume) {
            if hosted.lineage == lineage {
                go_on(&node, volume, Some(&hosted));
            }
            return;
        }
        if let Err(error) = made {
            let passes = error.may_pass();
            let error = format!("{:#}", anyhow::Error::from(error));
            if !passes {
                return tracing::warn!(volume = %register.spec.name, error, "no copy could be made here");
            }
            if !std::mem::replace(&mut told, true) {
                tracing::warn!(volume = %register.spec.name, error, "no copy can be made here for now: it is tried again");
            }
        }
        // Nothing is held meanwhile: a full copy may come.
        let newest = |newest: Register| newest.id == register.id;
        if !again(&node).await
            || !node.register(volume).is_some_and(newest)
            || node.volume(volume).is_some()
        {
            return;
        }
    }
}

/// Runs work that takes time in a task of its own.
fn then<W, F>(node: &Arc<Node>, register: Register, work: W)
where
    W: FnOnce(Arc<Node>, Register) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    node.handle.spawn(work(node.clone(), register));
}

/// Formats an empty copy, unless there is one, and hosts it. Does nothing if somebody else is at it.
///
/// # Errors
/// The disk's.
pub async fn format_copy(
    node: &Arc<Node>,
    spec: &VolumeSpec,
    lineage: Lineage,
    log_lineage: Lineage,
    sealed: Epoch,
) -> Result<(), CopyError> {
    let new = NewCopy {
        spec: spec.clone(),
        lineage,
        log_lineage,
        incarnation: Incarnation(node.random()),
        sealed,
    };
    match Opening::begin(node, spec.name.id()) {
        Some(_opening) => format_and_open(node, new).await,
        None => Ok(()),
    }
}

/// Held while a copy of a volume is made, replaced or taken over: only one of these runs at a time.
struct Opening {
    node: Arc<Node>,
    volume: VolumeId,
}

impl Opening {
    /// `None` if somebody else is at it.
    fn begin(node: &Arc<Node>, volume: VolumeId) -> Option<Self> {
        let mut opening = node
            .opening
            .lock()
            .expect("no panic while the lock is held");
        opening.insert(volume).then(|| Self {
            node: node.clone(),
            volume,
        })
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        let mut opening = self
            .node
            .opening
            .lock()
            .expect("no panic while the lock is held");
        opening.remove(&self.volume);
    }
}

async fn format_and_open(node: &Arc<Node>, new: NewCopy) -> Result<(), CopyError> {
    let volume = new.spec.name.id();
    if node
        .volume(volume)
        .is_some_and(|handle| handle.lineage == new.lineage)
    {
        return Ok(());
    }
    let dir = copy_dir(node, volume, new.lineage);
    if dir.join("meta").exists() {
        // A copy that did not open: it is kept, and not formatted over.
        host(node, actor::open(node, dir).await?);
        return Ok(());
    }
    let made = format_in(node, &dir, new).await;
    if made.is_err() {
        // Nothing was ever promised for it. A part of a copy takes room, which may be what is missing.
        discard(&dir).await;
    }
    let handle = made?;
    tracing::info!(volume = %handle.spec.name, "formatted an empty copy");
    host(node, handle);
    Ok(())
}

async fn format_in(node: &Arc<Node>, dir: &Path, new: NewCopy) -> Result<VolumeHandle, CopyError> {
    let io = |source| CopyError::Io {
        path: dir.to_owned(),
        source,
    };
    if dir.exists() {
        remove_copy(dir).await.map_err(io)?;
    }
    let (config, engine, path) = (node.copy_config(), node.settings.engine, dir.to_owned());
    let made = tokio::task::spawn_blocking(move || {
        run_on(engine, |disk| async move {
            create_copy(&disk, &path, &config, new).await
        })
    });
    made.await
        .map_err(|_| io(std::io::Error::other("formatting was interrupted")))?
        .map_err(io)??;
    actor::open(node, dir.to_owned()).await
}

/// Puts a full copy that was received in `from` in the place of the one that is here, and opens it, if it is still `allowed` to take
/// that place once nothing else can change it.
///
/// # Errors
/// Not allowed; or the disk's: the copy that was here is gone, and the primary sends another.
pub async fn adopt_copy(
    node: &Arc<Node>,
    register: &Register,
    from: &Path,
    allowed: impl FnOnce() -> Result<(), tonic::Status>,
) -> anyhow::Result<()> {
    let volume = register.spec.name.id();
    let Some(opening) = Opening::begin(node, volume) else {
        anyhow::bail!("the copy here is being opened");
    };
    allowed()?;
    let replaced = replace_copy(node, register, from).await;
    if let Ok(replaced) = &replaced {
        host(node, replaced.clone());
    }
    drop(opening);
    // If it failed, there may be a copy that is to be opened, or none.
    go_on(node, volume, replaced.as_ref().ok());
    replaced.map(|_| ())
}

/// Removes what was received, or made, and is not wanted.
pub async fn discard(dir: &Path) {
    if dir.exists()
        && let Err(error) = remove_copy(dir).await
    {
        tracing::warn!(path = %dir.display(), %error, "a copy that is not wanted is left until the next start");
    }
}

async fn replace_copy(
    node: &Arc<Node>,
    register: &Register,
    from: &Path,
) -> anyhow::Result<VolumeHandle> {
    let volume = register.spec.name.id();
    if let Some(handle) = unhost(node, volume) {
        stop_one(&handle, false).await;
    }
    let dir = copy_dir(node, volume, register.lineage);
    if dir.exists() {
        remove_copy(&dir).await?;
    }
    std::fs::rename(from, &dir)?;
    std::fs::File::open(volumes_dir(&node.settings.data_dir))?.sync_all()?;
    Ok(actor::open(node, dir).await?)
}

/// Removes a copy's directory, beside everything else: beats do not wait for the file system to give back a large image.
///
/// Files go in any order. If this breaks off, by a loss of power or by an error, the next start goes on with it.
async fn remove_copy(dir: &Path) -> std::io::Result<()> {
    let dir = dir.to_owned();
    let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(take_away(&dir)?));
    removed
        .await
        .unwrap_or_else(|ended| Err(std::io::Error::other(ended)))
}

/// Durably gives a copy's directory, if it is still there, the name under which it is removed.
fn take_away(dir: &Path) -> std::io::Result<PathBuf> {
    let mut name = dir.to_owned().into_os_string();
    name.push(REMOVED);
    let removed = PathBuf::from(name);
    if removed.exists() && dir.exists() {
        // An earlier removal broke off in this process.
        std::fs::remove_dir_all(&removed)?;
    }
    rename_durably(dir, &removed)?;
    Ok(removed)
}

/// Removes the files of a copy that was stopped: its volume was deleted. False if the node stops first: the next start finds it again.
async fn drop_copy(node: &Arc<Node>, handle: &VolumeHandle) -> bool {
    let dir = &handle.dir;
    let removed = until_it_passes(
        node,
        || async move { Ok(remove_copy(dir).await?) },
        |error| {
            tracing::warn!(path = %dir.display(), error, "the copy of a deleted volume cannot be removed for now: it is tried again");
        },
    );
    match removed.await {
        Some(Ok(())) => {
            tracing::info!(volume = %handle.spec.name, "removed the copy of a deleted volume")
        }
        Some(Err(error)) => {
            let error = format!("{error:#}");
            tracing::warn!(path = %dir.display(), error, "the copy of a deleted volume is left")
        }
        None => return false,
    }
    true
}

/// Tries until it works or fails for a reason that does not pass, and tells the first failure; none if the node stops. Whoever calls holds
/// its [`Opening`]: nobody must believe that there is no copy here.
async fn until_it_passes<T, F: Future<Output = anyhow::Result<T>>>(
    node: &Node,
    mut work: impl FnMut() -> F,
    tell: impl FnOnce(&str),
) -> Option<anyhow::Result<T>> {
    let mut tell = Some(tell);
    loop {
        match work().await {
            Err(error) if passes(&error) => {
                if let Some(tell) = tell.take() {
                    tell(&format!("{error:#}"));
                }
            }
            done => return Some(done),
        }
        if !again(node).await {
            return None;
        }
    }
}

/// Keeps a copy of a history that a forced promotion ended, whole and under another name: it may hold the only trace of
/// what was given up. True if the copy of the new history may take its place.
async fn set_aside(node: &Arc<Node>, handle: &VolumeHandle, register: &Register) -> bool {
    let mut name = handle.dir.clone().into_os_string();
    name.push(format!("{ASIDE}{}", register.epoch));
    let aside = PathBuf::from(name);
    let renamed = until_it_passes(
        node,
        || std::future::ready(rename_durably(&handle.dir, &aside).map_err(anyhow::Error::from)),
        |error| {
            tracing::warn!(path = %handle.dir.display(), error, "a copy of an ended history cannot be set aside for now: it is tried again");
        },
    );
    match renamed.await {
        Some(Ok(())) => {
            node.events.set_aside(&handle.spec.name, register, &aside);
            true
        }
        Some(Err(error)) => {
            let error = format!("{error:#}");
            tracing::error!(path = %handle.dir.display(), error, "a copy of an ended history could not be set aside");
            false
        }
        None => false,
    }
}

/// Takes the copy that a forced promotion chose over into the new history, and opens it again. It holds exactly what the
/// register calls the cut: it was sealed when it was asked, and nobody acted since. None if it does not open.
async fn adopt_lineage(
    node: &Arc<Node>,
    handle: &VolumeHandle,
    register: &Register,
) -> Option<VolumeHandle> {
    let adopted = until_it_passes(
        node,
        || adopt(node, &handle.dir, register),
        |error| {
            tracing::warn!(volume = %handle.spec.name, error, "the chosen copy does not open in its new history for now: it is tried again");
            node.events.copy_waits(&handle.dir, error);
        },
    );
    match adopted.await? {
        Ok(opened) => {
            host(node, opened.clone());
            Some(opened)
        }
        Err(error) => {
            let error = format!("{error:#}");
            tracing::error!(volume = %handle.spec.name, error, "the chosen copy does not open in its new history; \
                it is left as it is, and the next start tries again");
            node.events.copy_failed(node, &handle.dir, &error);
            None
        }
    }
}

async fn adopt(node: &Arc<Node>, dir: &Path, register: &Register) -> anyhow::Result<VolumeHandle> {
    // The name first: if all ends here, the copy still says that it is of the old history, and is taken over again.
    let renamed = copy_dir(node, register.spec.name.id(), register.lineage);
    if dir != renamed {
        rename_durably(dir, &renamed)?;
    }
    let (config, engine) = (node.copy_config(), node.settings.engine);
    let (path, lineage) = (renamed.clone(), register.lineage);
    let adopted = tokio::task::spawn_blocking(move || {
        run_on(engine, |disk| async move {
            mainstay_volume::store::adopt_lineage(&disk, &path, &config, lineage).await
        })
    });
    adopted.await???;
    Ok(actor::open(node, renamed).await?)
}

/// What an earlier try renamed already is made durable all the same.
fn rename_durably(from: &Path, to: &Path) -> std::io::Result<()> {
    if from.exists() || !to.exists() {
        std::fs::rename(from, to)?;
    }
    match to.parent() {
        Some(parent) => std::fs::File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

fn unhost(node: &Node, volume: VolumeId) -> Option<VolumeHandle> {
    node.volumes
        .write()
        .expect("no panic while the lock is held")
        .remove(&volume)
}

async fn stop_one(handle: &VolumeHandle, hand_over: bool) {
    let (done, stopped) = oneshot::channel();
    if handle.to.send(ToVolume::Stop { done, hand_over }).is_ok() {
        let _gone = stopped.await;
    }
}

/// Stops every copy; with `hand_over`, primaries hand over first.
pub async fn stop_all(node: &Arc<Node>, hand_over: bool) {
    let handles = node.volumes();
    let stops = handles.iter().map(|handle| stop_one(handle, hand_over));
    futures_util::future::join_all(stops).await;
    node.volumes
        .write()
        .expect("no panic while the lock is held")
        .clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files went one by one under the name of the copy. A loss of power left some of them, with the durable facts: neither a copy that
    /// opens nor a place for another.
    #[test]
    fn a_copy_loses_its_name_before_its_files() {
        let dir = tempfile::tempdir().expect("a directory");
        let copy = dir.path().join("1-2");
        for content in ["first", "second"] {
            std::fs::create_dir(&copy).expect("made");
            std::fs::write(copy.join("meta"), content).expect("written");
            // The second finds what the first would have left.
            let removed = take_away(&copy).expect("renamed");
            assert!(!copy.exists());
            assert_eq!(removed, dir.path().join("1-2.removed"));
            let found = std::fs::read_to_string(removed.join("meta"));
            assert_eq!(found.expect("read"), content);
        }
    }
}
