//! Requests that are under way at once: a store that is far away takes as long for sixteen as for one.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::ScopedJoinHandle;

use crossbeam_channel::bounded;

/// Does two things at once.
pub fn both<A: Send, B>(one: impl FnOnce() -> A + Send, other: impl FnOnce() -> B) -> (A, B) {
    std::thread::scope(|scope| {
        let one = scope.spawn(one);
        let other = other();
        (joined(one), other)
    })
}

fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Does `work` for each of `items`, so many at once. Returns what comes of them, in their order. After the first error no other
/// is begun.
pub fn together<T: Sync, R: Send, E: Send>(
    at_once: usize,
    items: &[T],
    work: impl Fn(&T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    let next = AtomicUsize::new(0);
    let some_of_them = || -> Result<Vec<(usize, R)>, E> {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Relaxed);
            let Some(item) = items.get(at) else { return Ok(done) };
            done.push((at, work(item).inspect_err(|_| next.store(items.len(), Relaxed))?));
        }
    };
    let mut done = std::thread::scope(|scope| {
        let others: Vec<_> = (1..at_once.min(items.len())).map(|_| scope.spawn(some_of_them)).collect();
        let mut done = some_of_them();
        for other in others {
            let more = joined(other);
            done = done.and_then(|mut done| more.map(|more| done.extend(more)).map(|()| done));
        }
        done
    })?;
    done.sort_unstable_by_key(|(at, _)| *at);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}

/// Does `work` for each of `items`, so many at once, and hands what comes of each to `each`, in their order: no more than so many
/// results are held. After the first error of `each` no other is begun.
pub fn in_order<T: Sync, R: Send, E>(
    at_once: usize,
    items: &[T],
    work: impl Fn(&T) -> R + Sync,
    mut each: impl FnMut(&T, R) -> Result<(), E>,
) -> Result<(), E> {
    let threads = at_once.min(items.len());
    if threads < 2 {
        return items.iter().try_for_each(|item| each(item, work(item)));
    }
    let work = &work;
    std::thread::scope(|scope| {
        // Every thread does its share, and waits with each result until its turn has come.
        let begin = |first: usize| {
            let (send, results) = bounded(0);
            scope.spawn(move || {
                items[first..].iter().step_by(threads).map(work).try_for_each(|result| send.send(result))
            });
            results
        };
        let results: Vec<_> = (0..threads).map(begin).collect();
        for (item, results) in items.iter().zip(results.iter().cycle()) {
            // Nothing comes of a thread that panicked, and then neither of this one.
            let Ok(result) = results.recv() else { break };
            each(item, result)?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn all_are_done_at_once_and_come_in_order() {
        let items: Vec<usize> = (0..8).collect();
        let all_here = Barrier::new(8);
        let double = |item: &usize| -> Result<usize, ()> {
            all_here.wait();
            Ok(item * 2)
        };
        assert_eq!(together(16, &items, double), Ok(vec![0, 2, 4, 6, 8, 10, 12, 14]));
        assert_eq!(
            together(0, &items[..1], |item| Ok::<_, ()>(*item)),
            Ok(vec![0]),
            "one is done without another thread"
        );
        assert_eq!(together(4, &[], |item: &usize| Ok::<_, ()>(*item)), Ok(vec![]));
    }

    #[test]
    fn after_an_error_no_other_is_begun() {
        let begun = AtomicUsize::new(0);
        let items: Vec<usize> = (0..1000).collect();
        let fail = |item: &usize| {
            begun.fetch_add(1, Relaxed);
            if *item == 5 { Err("five") } else { Ok(()) }
        };
        assert_eq!(together(1, &items, fail), Err("five"));
        assert_eq!(begun.into_inner(), 6);
    }

    #[test]
    fn results_are_handed_on_in_order_and_few_are_held() {
        let items: Vec<usize> = (0..100).collect();
        for at_once in [0, 1, 3, 200] {
            let (begun, mut seen) = (AtomicUsize::new(0), Vec::new());
            let work = |item: &usize| {
                begun.fetch_add(1, Relaxed);
                // The first of those at once take longest.
                std::thread::sleep(std::time::Duration::from_millis(3 - *item as u64 % 3));
                item * 2
            };
            let all = in_order(at_once, &items, work, |item, result| {
                assert_eq!(result, item * 2);
                assert!(begun.load(Relaxed) <= seen.len() + at_once.max(1) + 1, "{at_once} at once");
                seen.push(*item);
                Ok::<_, ()>(())
            });
            assert_eq!((all, &seen), (Ok(()), &items));
        }
    }

    #[test]
    fn after_an_error_of_who_takes_results_no_other_is_begun() {
        for at_once in [1, 4] {
            let begun = AtomicUsize::new(0);
            let items: Vec<usize> = (0..1000).collect();
            let work = |_: &usize| begun.fetch_add(1, Relaxed);
            let failed = in_order(at_once, &items, work, |item, _| if *item == 5 { Err("five") } else { Ok(()) });
            assert_eq!(failed, Err("five"));
            assert!(begun.into_inner() <= 6 + at_once);
        }
    }
}
