//! A pool of things that take long to make: a thread makes them ahead.

use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// A pool that fills itself up again.
pub struct Pool<T> {
    shared: Arc<Shared<T>>,
    maker: Mutex<Option<JoinHandle<()>>>,
}

struct Shared<T> {
    make: Box<dyn Fn() -> io::Result<T> + Send + Sync>,
    size: usize,
    state: Mutex<State<T>>,
    wanted: Condvar,
    made: Condvar,
}

struct State<T> {
    ready: VecDeque<T>,
    /// The thread is making one.
    making: bool,
    closed: bool,
}

impl<T: Send + 'static> Pool<T> {
    /// Keeps `size` items ready. The first is made at once, so that a host that cannot make any fails here.
    pub fn new(
        name: &str,
        size: usize,
        make: impl Fn() -> io::Result<T> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let first = make()?;
        Self::with(name, size, make, VecDeque::from([first]))
    }

    /// Keeps `size` items ready as soon as they can be made: there may be none left at the start.
    pub fn later(
        name: &str,
        size: usize,
        make: impl Fn() -> io::Result<T> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        Self::with(name, size, make, VecDeque::new())
    }

    fn with(
        name: &str,
        size: usize,
        make: impl Fn() -> io::Result<T> + Send + Sync + 'static,
        ready: VecDeque<T>,
    ) -> io::Result<Self> {
        let state = State { ready, making: false, closed: false };
        let (wanted, made) = (Condvar::new(), Condvar::new());
        let shared = Arc::new(Shared { make: Box::new(make), size, state: Mutex::new(state), wanted, made });
        let theirs = shared.clone();
        let maker = std::thread::Builder::new().name(name.into()).spawn(move || keep_full(&theirs))?;
        Ok(Self { shared, maker: Mutex::new(Some(maker)) })
    }

    /// Returns a ready item, or makes one.
    pub fn take(&self) -> io::Result<T> {
        let ready = self.shared.state.lock().ready.pop_front();
        self.shared.wanted.notify_one();
        if let Some(ready) = ready {
            return Ok(ready);
        }
        (self.shared.make)().or_else(|error| {
            // Of what there is only a number, such as subnets, the thread may be making the last.
            let mut state = self.shared.state.lock();
            while state.making {
                self.shared.made.wait(&mut state);
            }
            state.ready.pop_front().ok_or(error)
        })
    }

    /// Puts an unused item back.
    pub fn put_back(&self, item: T) {
        self.shared.state.lock().ready.push_front(item);
    }
}

impl<T> Pool<T> {
    /// Drops the ready items and makes no more ahead; the thread has ended when this returns.
    pub fn close(&self) {
        self.shared.state.lock().closed = true;
        self.shared.wanted.notify_one();
        let maker = self.maker.lock().take();
        if let Some(maker) = maker {
            drop(maker.join());
        }
    }
}

impl<T> Drop for Pool<T> {
    fn drop(&mut self) {
        self.close();
    }
}

/// How long nothing must have been taken before a pool that is not low is filled up.
const QUIET: Duration = Duration::from_millis(20);

fn keep_full<T>(shared: &Shared<T>) {
    let mut state = shared.state.lock();
    while !state.closed {
        let have = state.ready.len();
        if have >= shared.size / 3 && have < shared.size {
            // There are enough for now: a create that takes one shall not share the processor with this
            // thread.
            let quiet = shared.wanted.wait_for(&mut state, QUIET);
            if state.closed || !quiet.timed_out() {
                continue;
            }
        }
        if have < shared.size {
            state.making = true;
            drop(state);
            let made = (shared.make)();
            state = shared.state.lock();
            state.making = false;
            shared.made.notify_all();
            if let Ok(made) = made {
                state.ready.push_back(made);
                continue;
            }
            // The next caller of `take` makes an item itself and gets the error; then this thread tries
            // again.
        }
        shared.wanted.wait(&mut state);
    }
    state.ready.clear();
}

impl<T> std::fmt::Debug for Pool<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("size", &self.shared.size).finish_non_exhaustive()
    }
}
