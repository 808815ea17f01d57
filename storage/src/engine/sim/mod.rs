//! The simulated disk of one node: live bytes, durable bytes, and the changes between them.
//!
//! # Fault model
//!
//! - [`SimDisk::crash`] is a loss of power. Every change to a file since its last completed sync is lost, kept, or
//!   torn into 512-byte sectors of which any subset is kept; each change is decided by itself, so changes are also
//!   reordered. Every directory change (create, rename, remove) since the last completed `sync_dir` of its directory
//!   is lost or kept, each by itself; one rename is never half done. `create_dir_all` is durable at once.
//! - [`SimDisk::kill_process`] ends the process: nothing is lost, open files are dead.
//! - A sector is never half written, and a completed sync is never a lie.
//! - Injected: an error on the nth operation of a kind, a full disk after a byte budget, a short read, flipped bits
//!   at rest, ranges that the medium does not give back, operations that hang until released.
//! - After a failed sync some of its changes are durable, some are not, and no later sync writes them again.
//!
//! Every choice comes from the seed, and nothing here reads a clock or iterates in hash order: the same seed, calls
//! and hook give the same bytes.

mod pages;
mod rng;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::{AlignedBuf, Caching, Disk, DiskFile, OpenMode};
use pages::{Change, Inode};
use rng::Rng;

/// Kind of an operation, as hooks and faults name it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum OpKind {
    /// Opening or creating a file.
    Open,
    /// Reading bytes, a length, a list or a name.
    Read,
    /// Writing bytes.
    Write,
    /// Syncing a file; also the second half of a durable write.
    Sync,
    /// Taking what was written out of the page cache, which makes nothing durable.
    WriteOut,
    /// Punching a hole or setting a length.
    Resize,
    /// Renaming, removing, making a directory.
    Name,
    /// Syncing a directory.
    SyncDir,
}

/// Where in an operation a hook is called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Nothing has happened.
    Before,
    /// The effect is there, its completion is not: a crash here may keep or lose it.
    After,
}

/// An operation as a hook sees it.
#[derive(Clone, Copy, Debug)]
pub struct SimOp<'a> {
    /// What it does.
    pub kind: OpKind,
    /// To which file or directory.
    pub path: &'a Path,
    /// Bytes that it moves.
    pub bytes: u64,
    /// How far it is.
    pub stage: Stage,
}

/// The caller's scheduler: called before and after the effect of every operation; the operation goes on when the
/// future it returns is ready. Dropping that future is a crash at that point.
pub trait SimHook {
    /// Delays one operation.
    fn operation(&self, op: SimOp<'_>) -> Pin<Box<dyn Future<Output = ()>>>;
}

struct Immediate;

impl SimHook for Immediate {
    fn operation(&self, _: SimOp<'_>) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(std::future::ready(()))
    }
}

/// What goes wrong with an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// `EIO`. A failed write or sync may have reached the medium in part.
    Eio,
    /// `ENOSPC`. Nothing was done.
    NoSpace,
    /// `EMFILE`, of an operation that opens something. Nothing was done.
    NoDescriptor,
    /// A read that gives half of what was asked; `EIO` for other operations.
    Short,
}

enum NameOp {
    Create(PathBuf, Rc<RefCell<Inode>>),
    Rename(PathBuf, PathBuf, Rc<RefCell<Inode>>),
    Remove(PathBuf),
}

impl NameOp {
    fn dir(&self) -> &Path {
        let path = match self {
            Self::Create(path, _) | Self::Rename(path, _, _) | Self::Remove(path) => path,
        };
        path.parent().unwrap_or_else(|| Path::new(""))
    }

    fn apply(self, names: &mut Names) {
        match self {
            Self::Create(path, inode) => {
                names.insert(path, inode);
            }
            Self::Rename(from, to, inode) => {
                names.remove(&from);
                names.insert(to, inode);
            }
            Self::Remove(path) => {
                names.remove(&path);
            }
        }
    }
}

type Names = BTreeMap<PathBuf, Rc<RefCell<Inode>>>;

struct State {
    rng: Rng,
    /// Rises with every end of the process, so that old handles are told from new ones.
    life: u64,
    dirs: BTreeSet<PathBuf>,
    live: Names,
    durable: Names,
    pending: Vec<NameOp>,
    faults: Vec<(OpKind, u64, Fault)>,
    capacity: Option<u64>,
    stalled: BTreeSet<OpKind>,
    wakers: Vec<Waker>,
    operations: u64,
}

/// The disk of one simulated node. Clones share it.
#[derive(Clone)]
pub struct SimDisk {
    state: Rc<RefCell<State>>,
    hook: Rc<dyn SimHook>,
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.borrow();
        write!(
            f,
            "SimDisk({} files, {} operations)",
            state.live.len(),
            state.operations
        )
    }
}

/// An open file of [`SimDisk`].
#[derive(Clone)]
pub struct SimFile {
    disk: SimDisk,
    inode: Rc<RefCell<Inode>>,
    path: Rc<Path>,
    life: u64,
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimFile({})", self.path.display())
    }
}

impl SimDisk {
    /// An empty disk; every random choice comes from `seed`, every delay from `hook`.
    #[must_use]
    pub fn new(seed: u64, hook: Rc<dyn SimHook>) -> Self {
        let state = State {
            rng: Rng(seed),
            life: 0,
            dirs: BTreeSet::new(),
            live: Names::new(),
            durable: Names::new(),
            pending: Vec::new(),
            faults: Vec::new(),
            capacity: None,
            stalled: BTreeSet::new(),
            wakers: Vec::new(),
            operations: 0,
        };
        Self {
            state: Rc::new(RefCell::new(state)),
            hook,
        }
    }

    /// An empty disk whose operations never wait.
    #[must_use]
    pub fn immediate(seed: u64) -> Self {
        Self::new(seed, Rc::new(Immediate))
    }

    /// The same disk seen through another hook.
    #[must_use]
    pub fn with_hook(&self, hook: Rc<dyn SimHook>) -> Self {
        Self {
            state: self.state.clone(),
            hook,
        }
    }

    /// Loss of power: see the fault model. Drop the node's futures first; handles from before are dead.
    pub fn crash(&self) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        state.life += 1;
        for op in std::mem::take(&mut state.pending) {
            if state.rng.below(2) == 0 {
                op.apply(&mut state.durable);
            }
        }
        for inode in state.durable.values() {
            inode.borrow_mut().crash(&mut state.rng);
        }
        state.live = state.durable.clone();
    }

    /// End of the process alone: nothing is lost, nothing becomes durable, handles from before are dead.
    pub fn kill_process(&self) {
        self.state.borrow_mut().life += 1;
    }

    /// The `nth` operation of `kind` from now on (1 is the next) fails.
    pub fn fail_nth(&self, kind: OpKind, nth: u64, fault: Fault) {
        self.state.borrow_mut().faults.push((kind, nth, fault));
    }

    /// Forgets faults that have not struck.
    pub fn clear_faults(&self) {
        self.state.borrow_mut().faults.clear();
    }

    /// Bytes that the disk holds at most; more is `ENOSPC`.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state.borrow_mut().capacity = bytes;
    }

    /// Bytes that the disk holds.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.state.borrow().used()
    }

    /// Operations begun so far.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.state.borrow().operations
    }

    /// Flips bits of a stored byte, at rest. False if there is no such byte.
    pub fn rot(&self, path: &Path, offset: u64, mask: u8) -> bool {
        let state = self.state.borrow();
        let Some(inode) = state.live.get(path) else {
            return false;
        };
        let mut inode = inode.borrow_mut();
        inode.durable.flip(offset, mask);
        inode.live.flip(offset, mask)
    }

    /// Makes reads that touch a range of a file fail with `EIO` from now on. False if there is no such file.
    pub fn make_unreadable(&self, path: &Path, range: Range<u64>) -> bool {
        let state = self.state.borrow();
        let Some(inode) = state.live.get(path) else {
            return false;
        };
        inode.borrow_mut().unreadable.push(range);
        true
    }

    /// Content of a file as a process sees it, for tests and checkers.
    #[must_use]
    pub fn peek(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.state.borrow();
        let inode = state.live.get(path)?.borrow();
        let mut out = vec![0; usize::try_from(inode.live.len()).ok()?];
        inode.live.read(0, &mut out);
        Some(out)
    }

    /// Replaces a file's content at rest, creating it if need be: swaps, truncations and restores from elsewhere.
    pub fn plant(&self, path: &Path, content: &[u8]) {
        let mut inode = Inode::default();
        inode.change(Change::Write {
            offset: 0,
            data: content.to_vec(),
        });
        inode.sync();
        let inode = Rc::new(RefCell::new(inode));
        let mut state = self.state.borrow_mut();
        state.live.insert(path.to_owned(), inode.clone());
        state.durable.insert(path.to_owned(), inode);
    }

    /// Operations of `kind` hang until [`SimDisk::release`].
    pub fn stall(&self, kind: OpKind) {
        self.state.borrow_mut().stalled.insert(kind);
    }

    /// Ends all stalls.
    pub fn release(&self) {
        let mut state = self.state.borrow_mut();
        state.stalled.clear();
        for waker in state.wakers.drain(..) {
            waker.wake();
        }
    }

    async fn gate(&self, kind: OpKind, path: &Path, bytes: u64, stage: Stage) {
        let delay = self.hook.operation(SimOp {
            kind,
            path,
            bytes,
            stage,
        });
        delay.await;
        Unstalled {
            state: &self.state,
            kind,
        }
        .await;
    }

    /// The fault, if one strikes this operation.
    fn strike(&self, kind: OpKind) -> Option<Fault> {
        let mut state = self.state.borrow_mut();
        state.operations += 1;
        let mut struck = None;
        state.faults.retain_mut(|(of, nth, fault)| {
            if *of != kind {
                return true;
            }
            *nth = nth.saturating_sub(1);
            if *nth == 0 {
                struck = Some(*fault);
            }
            *nth != 0
        });
        struck
    }

    /// One whole operation without a payload.
    async fn operation<T>(
        &self,
        kind: OpKind,
        path: &Path,
        effect: impl FnOnce(&mut State) -> io::Result<T>,
    ) -> io::Result<T> {
        self.gate(kind, path, 0, Stage::Before).await;
        if let Some(fault) = self.strike(kind) {
            return Err(error_of(fault));
        }
        let result = effect(&mut self.state.borrow_mut());
        self.gate(kind, path, 0, Stage::After).await;
        result
    }
}

struct Unstalled<'a> {
    state: &'a RefCell<State>,
    kind: OpKind,
}

impl Future for Unstalled<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.borrow_mut();
        if state.stalled.contains(&self.kind) {
            state.wakers.push(context.waker().clone());
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }
}

impl State {
    fn used(&self) -> u64 {
        self.live
            .values()
            .map(|inode| inode.borrow().live.stored_bytes())
            .sum()
    }

    fn find(&self, path: &Path) -> io::Result<Rc<RefCell<Inode>>> {
        self.live
            .get(path)
            .cloned()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn rename_op(&mut self, make: NameOp, again: NameOp) {
        make.apply(&mut self.live);
        self.pending.push(again);
    }
}

fn error_of(fault: Fault) -> io::Error {
    io::Error::from_raw_os_error(match fault {
        Fault::NoSpace => libc::ENOSPC,
        Fault::NoDescriptor => libc::EMFILE,
        Fault::Eio | Fault::Short => libc::EIO,
    })
}

impl Disk for SimDisk {
    type File = SimFile;

    fn name(&self) -> &'static str {
        "sim"
    }

    async fn open(&self, path: &Path, mode: OpenMode, _: Caching) -> io::Result<SimFile> {
        let effect = |state: &mut State| {
            let inode = if mode == OpenMode::CreateNew {
                if state.live.contains_key(path) {
                    return Err(io::ErrorKind::AlreadyExists.into());
                }
                if !state
                    .dirs
                    .contains(path.parent().unwrap_or_else(|| Path::new("")))
                {
                    return Err(io::ErrorKind::NotFound.into());
                }
                let inode = Rc::new(RefCell::new(Inode::default()));
                state.rename_op(
                    NameOp::Create(path.to_owned(), inode.clone()),
                    NameOp::Create(path.to_owned(), inode.clone()),
                );
                inode
            } else {
                state.find(path)?
            };
            Ok((inode, state.life))
        };
        let (inode, life) = self.operation(OpKind::Open, path, effect).await?;
        Ok(SimFile {
            disk: self.clone(),
            inode,
            path: path.into(),
            life,
        })
    }

    async fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let effect = |state: &mut State| {
            state.dirs.extend(path.ancestors().map(Path::to_owned));
            Ok(())
        };
        self.operation(OpKind::Name, path, effect).await
    }

    async fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let effect = |state: &mut State| {
            if !state.dirs.contains(path) {
                return Err(io::ErrorKind::NotFound.into());
            }
            let names = state
                .live
                .keys()
                .chain(&state.dirs)
                .filter(|entry| entry.parent() == Some(path));
            let names = names.filter_map(|entry| Some(entry.file_name()?.to_str()?.to_owned()));
            Ok(names.collect::<BTreeSet<_>>().into_iter().collect())
        };
        self.operation(OpKind::Read, path, effect).await
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let effect = |state: &mut State| {
            let inode = state.find(from)?;
            let op = || NameOp::Rename(from.to_owned(), to.to_owned(), inode.clone());
            state.rename_op(op(), op());
            Ok(())
        };
        self.operation(OpKind::Name, from, effect).await
    }

    async fn remove(&self, path: &Path) -> io::Result<()> {
        let effect = |state: &mut State| {
            state.find(path)?;
            state.rename_op(
                NameOp::Remove(path.to_owned()),
                NameOp::Remove(path.to_owned()),
            );
            Ok(())
        };
        self.operation(OpKind::Name, path, effect).await
    }

    async fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let effect = |state: &mut State| {
            let all = std::mem::take(&mut state.pending);
            for op in all {
                if op.dir() == path {
                    op.apply(&mut state.durable);
                } else {
                    state.pending.push(op);
                }
            }
            Ok(())
        };
        self.operation(OpKind::SyncDir, path, effect).await
    }

    async fn exists(&self, path: &Path) -> io::Result<bool> {
        let effect =
            |state: &mut State| Ok(state.live.contains_key(path) || state.dirs.contains(path));
        self.operation(OpKind::Read, path, effect).await
    }

    async fn map_sealed(&self, _: &Path) -> Option<io::Result<Bytes>> {
        None
    }
}

impl SimFile {
    fn alive(&self) -> io::Result<()> {
        if self.life == self.disk.state.borrow().life {
            Ok(())
        } else {
            Err(io::Error::other("file of a process that has ended"))
        }
    }

    fn room_for(&self, offset: u64, len: u64) -> io::Result<()> {
        let state = self.disk.state.borrow();
        let Some(capacity) = state.capacity else {
            return Ok(());
        };
        if state.used() + self.inode.borrow().live.growth(offset, len) > capacity {
            return Err(error_of(Fault::NoSpace));
        }
        Ok(())
    }

    async fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let len = data.len() as u64;
        self.disk
            .gate(OpKind::Write, &self.path, len, Stage::Before)
            .await;
        self.alive()?;
        let change = Change::Write {
            offset,
            data: data.to_vec(),
        };
        match self.disk.strike(OpKind::Write) {
            Some(fault @ (Fault::NoSpace | Fault::NoDescriptor)) => return Err(error_of(fault)),
            Some(fault) => {
                let mut state = self.disk.state.borrow_mut();
                let mut inode = self.inode.borrow_mut();
                inode.live.apply_torn(&change, &mut state.rng);
                inode.durable.apply_torn(&change, &mut state.rng);
                return Err(error_of(fault));
            }
            None => {}
        }
        self.room_for(offset, len)?;
        self.inode.borrow_mut().change(change);
        self.disk
            .gate(OpKind::Write, &self.path, len, Stage::After)
            .await;
        Ok(())
    }

    async fn resize(&self, change: Change) -> io::Result<()> {
        let effect = |_: &mut State| {
            self.inode.borrow_mut().change(change);
            Ok(())
        };
        self.alive()?;
        self.disk
            .operation(OpKind::Resize, &self.path, effect)
            .await
    }

    /// A failure loses what was not written back, and is told once.
    async fn begin_write_back(&self, kind: OpKind, len: u64) -> io::Result<()> {
        self.disk.gate(kind, &self.path, len, Stage::Before).await;
        self.alive()?;
        let Some(fault) = self.disk.strike(kind) else {
            return Ok(());
        };
        let mut state = self.disk.state.borrow_mut();
        self.inode.borrow_mut().sync_failed(&mut state.rng);
        Err(error_of(fault))
    }

    async fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let len = buf.len() as u64;
        self.disk
            .gate(OpKind::Read, &self.path, len, Stage::Before)
            .await;
        self.alive()?;
        let fault = self.disk.strike(OpKind::Read);
        let count = {
            let inode = self.inode.borrow();
            let range = offset..offset + len;
            if inode
                .unreadable
                .iter()
                .any(|bad| bad.start < range.end && range.start < bad.end)
            {
                return Err(error_of(Fault::Eio));
            }
            match fault {
                Some(Fault::Short) => {
                    let half = buf.len() / 2;
                    inode.live.read(offset, &mut buf[..half])
                }
                Some(fault) => return Err(error_of(fault)),
                None => inode.live.read(offset, buf),
            }
        };
        self.disk
            .gate(OpKind::Read, &self.path, len, Stage::After)
            .await;
        Ok(count)
    }
}

impl DiskFile for SimFile {
    async fn read_at(&self, mut buf: AlignedBuf, offset: u64) -> (io::Result<usize>, AlignedBuf) {
        let result = self.read(&mut buf, offset).await;
        (result, buf)
    }

    async fn write_at(&self, buf: AlignedBuf, offset: u64) -> (io::Result<()>, AlignedBuf) {
        let result = self.write(&buf, offset).await;
        (result, buf)
    }

    async fn write_durable(&self, buf: AlignedBuf, offset: u64) -> (io::Result<()>, AlignedBuf) {
        if let Err(error) = self.write(&buf, offset).await {
            return (Err(error), buf);
        }
        let result = self.sync().await;
        (result, buf)
    }

    async fn sync(&self) -> io::Result<()> {
        self.begin_write_back(OpKind::Sync, 0).await?;
        self.inode.borrow_mut().sync();
        self.disk
            .gate(OpKind::Sync, &self.path, 0, Stage::After)
            .await;
        Ok(())
    }

    async fn sync_beside(&self) -> io::Result<()> {
        self.sync().await
    }

    async fn write_out(&self, _offset: u64, len: u64) -> io::Result<()> {
        self.begin_write_back(OpKind::WriteOut, len).await?;
        self.disk
            .gate(OpKind::WriteOut, &self.path, len, Stage::After)
            .await;
        Ok(())
    }

    async fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.resize(Change::Zero { offset, len }).await
    }

    async fn len(&self) -> io::Result<u64> {
        self.alive()?;
        let effect = |_: &mut State| Ok(self.inode.borrow().live.len());
        self.disk.operation(OpKind::Read, &self.path, effect).await
    }

    async fn reserve(&self, offset: u64, len: u64) -> io::Result<bool> {
        let bytes = usize::try_from(len).map_err(io::Error::other)?;
        let (result, _) = self.write_at(AlignedBuf::zeroed(bytes), offset).await;
        result.map(|()| true)
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.resize(Change::SetLen(len)).await
    }
}
