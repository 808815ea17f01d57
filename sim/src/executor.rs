//! A deterministic single-threaded executor in virtual time.
//!
//! Rules: nothing here reads a real clock; tasks run in the order in which they were woken; a task belongs to one
//! simulated process, and ending that process drops its tasks wherever they wait. Tasks of a paused process are kept
//! back until it goes on.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// Names one life of one simulated process.
pub type ProcId = u64;

type TaskId = u64;
type BoxFuture = Pin<Box<dyn Future<Output = ()>>>;

#[derive(Default)]
struct ReadyQueue(Mutex<VecDeque<TaskId>>);

impl ReadyQueue {
    fn push(&self, task: TaskId) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(task);
    }

    fn pop(&self) -> Option<TaskId> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }
}

struct TaskWaker {
    task: TaskId,
    ready: Arc<ReadyQueue>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.ready.push(self.task);
    }
}

struct Task {
    owner: ProcId,
    future: Option<BoxFuture>,
    waker: Waker,
}

#[derive(Default)]
struct Inner {
    tasks: BTreeMap<TaskId, Task>,
    next_task: TaskId,
    timers: BTreeMap<(u64, u64), Waker>,
    next_timer: u64,
    paused: BTreeSet<ProcId>,
    held: Vec<TaskId>,
}

/// Tasks and timers of the whole cluster. Clones share them.
#[derive(Clone, Default)]
pub struct Executor {
    inner: Rc<RefCell<Inner>>,
    ready: Arc<ReadyQueue>,
    now: Rc<Cell<u64>>,
    polls: Rc<Cell<u64>>,
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.inner.borrow();
        write!(
            f,
            "Executor({} tasks, {} timers)",
            inner.tasks.len(),
            inner.timers.len()
        )
    }
}

impl Executor {
    /// Nanoseconds since the start of the simulation: true time, which no process can see.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.now.get()
    }

    /// Moves the time; wakes every task whose timer is due.
    pub fn advance(&self, now: u64) {
        assert!(now >= self.now.get(), "time goes back");
        self.now.set(now);
        let mut inner = self.inner.borrow_mut();
        while let Some(entry) = inner.timers.first_entry() {
            if entry.key().0 > now {
                break;
            }
            entry.remove().wake();
        }
    }

    /// When the next timer is due.
    #[must_use]
    pub fn next_timer(&self) -> Option<u64> {
        self.inner
            .borrow()
            .timers
            .first_key_value()
            .map(|((at, _), _)| *at)
    }

    /// Starts a task and runs it to its first wait.
    pub fn spawn(&self, owner: ProcId, future: impl Future<Output = ()> + 'static) {
        let id = {
            let mut inner = self.inner.borrow_mut();
            inner.next_task += 1;
            let id = inner.next_task;
            let waker = Waker::from(Arc::new(TaskWaker {
                task: id,
                ready: self.ready.clone(),
            }));
            let task = Task {
                owner,
                future: Some(Box::pin(future)),
                waker,
            };
            inner.tasks.insert(id, task);
            id
        };
        self.poll(id);
    }

    /// Runs every task that is ready, until so many polls were made since the start.
    pub fn run_ready(&self, polls_max: u64) {
        while self.polls() <= polls_max
            && let Some(task) = self.ready.pop()
        {
            self.poll(task);
        }
    }

    /// Polls since the start.
    #[must_use]
    pub fn polls(&self) -> u64 {
        self.polls.get()
    }

    fn poll(&self, id: TaskId) {
        self.polls.set(self.polls.get() + 1);
        let (mut future, waker) = {
            let mut inner = self.inner.borrow_mut();
            let inner = &mut *inner;
            let Some(task) = inner.tasks.get_mut(&id) else {
                return;
            };
            if inner.paused.contains(&task.owner) {
                inner.held.push(id);
                return;
            }
            let Some(future) = task.future.take() else {
                return;
            };
            (future, task.waker.clone())
        };
        let done = future
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_ready();
        let mut inner = self.inner.borrow_mut();
        if done {
            inner.tasks.remove(&id);
        } else if let Some(task) = inner.tasks.get_mut(&id) {
            task.future = Some(future);
        }
    }

    /// Drops every task of a process.
    pub fn end(&self, owner: ProcId) {
        let dropped: Vec<Task> = {
            let mut inner = self.inner.borrow_mut();
            inner.paused.remove(&owner);
            let ids: Vec<TaskId> = inner
                .tasks
                .iter()
                .filter(|(_, task)| task.owner == owner)
                .map(|(id, _)| *id)
                .collect();
            ids.iter().filter_map(|id| inner.tasks.remove(id)).collect()
        };
        drop(dropped);
    }

    /// Drops every task. Tasks hold clones of their executor: nothing else would ever free them.
    pub fn end_all(&self) {
        let dropped = std::mem::take(&mut self.inner.borrow_mut().tasks);
        drop(dropped);
    }

    /// Keeps a process's tasks from running.
    pub fn pause(&self, owner: ProcId) {
        self.inner.borrow_mut().paused.insert(owner);
    }

    /// Lets them run again.
    pub fn resume(&self, owner: ProcId) {
        let held = {
            let mut inner = self.inner.borrow_mut();
            inner.paused.remove(&owner);
            std::mem::take(&mut inner.held)
        };
        for task in held {
            self.ready.push(task);
        }
    }

    /// Waits for `nanos` of true time.
    #[must_use]
    pub fn sleep(&self, nanos: u64) -> Sleep {
        Sleep {
            executor: self.clone(),
            until: self.now() + nanos,
            armed: false,
        }
    }
}

/// See [`Executor::sleep`].
#[derive(Debug)]
pub struct Sleep {
    executor: Executor,
    until: u64,
    armed: bool,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.executor.now() >= self.until {
            return Poll::Ready(());
        }
        if !self.armed {
            self.armed = true;
            let mut inner = self.executor.inner.borrow_mut();
            inner.next_timer += 1;
            let key = (self.until, inner.next_timer);
            inner.timers.insert(key, context.waker().clone());
        }
        Poll::Pending
    }
}

/// One waiter that others wake.
#[derive(Debug, Default)]
pub struct Notify {
    waker: RefCell<Option<Waker>>,
    set: Cell<bool>,
}

impl Notify {
    /// Wakes the waiter, or the next one to come.
    pub fn notify(&self) {
        self.set.set(true);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Waits for a notification, or at most `nanos`. True if notified.
    pub async fn wait_or(&self, executor: &Executor, nanos: Option<u64>) -> bool {
        let mut sleep = nanos.map(|nanos| executor.sleep(nanos));
        std::future::poll_fn(|context| {
            if self.set.take() {
                return Poll::Ready(true);
            }
            if let Some(sleep) = &mut sleep
                && Pin::new(sleep).poll(context).is_ready()
            {
                return Poll::Ready(false);
            }
            *self.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }
}
