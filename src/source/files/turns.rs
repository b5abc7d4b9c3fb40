//! Long files of new names are read in turn: what comes later can be compressed against what is done. Side by side neither
//! could, and it would take as long, as whoever reads one alone has others to help.

use std::sync::{Condvar, Mutex, MutexGuard};

/// So many may be read at once.
pub(super) struct Turns {
    free: Mutex<usize>,
    ended: Condvar,
}

/// It lasts as long as this value.
pub(super) struct Turn<'t>(&'t Turns);

impl Turns {
    pub(super) fn new(at_once: usize) -> Self {
        Self { free: Mutex::new(at_once), ended: Condvar::new() }
    }

    /// Waits for one.
    pub(super) fn wait(&self) -> Turn<'_> {
        let waited = self.ended.wait_while(self.lock(), |free| *free == 0);
        *waited.expect("no code panics while it holds this lock") -= 1;
        Turn(self)
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.free.lock().expect("no code panics while it holds this lock")
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.lock() += 1;
        self.0.ended.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    #[test]
    fn no_more_than_so_many_have_their_turn() {
        for at_once in [1, 3] {
            let (turns, now, most) = (Turns::new(at_once), AtomicUsize::new(0), AtomicUsize::new(0));
            let work = || {
                for _ in 0..20 {
                    let _turn = turns.wait();
                    most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                    std::thread::sleep(std::time::Duration::from_micros(200));
                    now.fetch_sub(1, SeqCst);
                }
            };
            std::thread::scope(|scope| (0..6).for_each(|_| drop(scope.spawn(work))));
            assert_eq!(most.into_inner(), at_once);
        }
    }
}
