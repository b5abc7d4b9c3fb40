//! How far openers may be ahead of who takes what they open.

use std::sync::{Condvar, Mutex, MutexGuard};

/// Windows are taken in order. While the taker waits for one, those after it may be opened as fast as they come; while it is
/// busy with what it has (a database that is slow to take rows, say), only a few, so that opened blobs do not pile up.
pub(super) struct Taking {
    windows: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    taken: u64,
    /// The taker waits for a window, or is gone.
    waits: bool,
}

/// Who takes windows. Once it is dropped nobody waits for it.
pub(super) struct Taker<'t>(&'t Taking);

impl Taking {
    /// `windows` is how many may be opened for a taker that is busy.
    pub fn new(windows: usize) -> Self {
        Self { windows: windows as u64, state: Mutex::default(), changed: Condvar::new() }
    }

    /// The one that takes.
    pub fn taker(&self) -> Taker<'_> {
        Taker(self)
    }

    /// Returns once the window may be opened that is the `turn`th of the stream, from 0 on.
    pub fn wait_for(&self, turn: u64) {
        let too_early = |state: &mut State| !state.waits && turn >= state.taken + self.windows;
        drop(self.changed.wait_while(self.lock(), too_early).expect("no code panics while it holds this lock"));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds this lock")
    }

    fn set_waits(&self) {
        self.lock().waits = true;
        self.changed.notify_all();
    }
}

impl Taker<'_> {
    /// Takes the next window, which is here, or has to be waited for.
    pub fn take<T>(&self, here: Option<T>, wait: impl FnOnce() -> T) -> T {
        let window = here.unwrap_or_else(|| {
            self.0.set_waits();
            wait()
        });
        let mut state = self.0.lock();
        (state.waits, state.taken) = (false, state.taken + 1);
        drop(state);
        self.0.changed.notify_all();
        window
    }
}

impl Drop for Taker<'_> {
    fn drop(&mut self) {
        self.0.set_waits();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    #[test]
    fn openers_run_ahead_of_who_waits_and_not_of_who_is_busy() {
        let taking = Taking::new(2);
        let taker = taking.taker();
        let (opened, opens) = channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for turn in 0..9 {
                    taking.wait_for(turn);
                    opened.send(turn).expect("somebody listens");
                    // So that nobody is asked about the next one before it was looked at what comes of this.
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
            let next = |wanted: Option<u64>| {
                let patience = Duration::from_millis(if wanted.is_some() { 10_000 } else { 200 });
                assert_eq!(opens.recv_timeout(patience).ok(), wanted);
            };
            [Some(0), Some(1), None].into_iter().for_each(next);
            taker.take(None, || [Some(2), Some(3), Some(4)].into_iter().for_each(next));
            next(None);
            (0..3).for_each(|_| taker.take(Some(()), || unreachable!("it is here")));
            [Some(5), None].into_iter().for_each(next);
            drop(taker);
            [Some(6), Some(7), Some(8)].into_iter().for_each(next);
        });
    }
}
