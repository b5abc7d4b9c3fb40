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
    /// The taker waits for a window.
    waits: bool,
    is_gone: bool,
}

/// Who takes windows. Once it is dropped nobody opens any.
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

    /// Returns once the window may be opened that is the `turn`th of the stream, from 0 on; false if nobody will take it.
    pub fn wait_for(&self, turn: u64) -> bool {
        let too_early = |state: &mut State| !state.is_gone && !state.waits && turn >= state.taken + self.windows;
        let state = self.changed.wait_while(self.lock(), too_early).expect("no code panics while it holds this lock");
        !state.is_gone
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds this lock")
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

impl Taker<'_> {
    /// Takes the next window, which is here, or has to be waited for.
    pub fn take<T>(&self, here: Option<T>, wait: impl FnOnce() -> T) -> T {
        let window = here.unwrap_or_else(|| {
            self.0.change(|state| state.waits = true);
            wait()
        });
        self.0.change(|state| (state.waits, state.taken) = (false, state.taken + 1));
        window
    }
}

impl Drop for Taker<'_> {
    fn drop(&mut self) {
        self.0.change(|state| state.is_gone = true);
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
                    let turn = taking.wait_for(turn).then_some(turn);
                    opened.send(turn).expect("somebody listens");
                    // So that nobody is asked about the next one before it was looked at what comes of this.
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
            let next = |wanted: Option<u64>| {
                let patience = Duration::from_millis(if wanted.is_some() { 10_000 } else { 200 });
                assert_eq!(opens.recv_timeout(patience).ok(), wanted.map(Some));
            };
            [Some(0), Some(1), None].into_iter().for_each(next);
            taker.take(None, || [Some(2), Some(3), Some(4)].into_iter().for_each(next));
            next(None);
            (0..3).for_each(|_| taker.take(Some(()), || unreachable!("it is here")));
            [Some(5), None].into_iter().for_each(next);
            drop(taker);
            (6..9).for_each(|_| assert_eq!(opens.recv(), Ok(None), "nobody wants them"));
        });
    }
}
