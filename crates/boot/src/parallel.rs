//! Work that several host processors share: a kernel is decompressed and copied before anything else can
//! happen, so this is time that somebody waits.

use std::sync::{Mutex, PoisonError};
use std::thread::available_parallelism;

/// Does `work` on every item, on as many threads as the host has processors.
///
/// # Errors
/// The first failure; other items may or may not have been worked on.
pub(crate) fn for_each<T: Send, E: Send>(
    items: Vec<T>,
    work: impl Fn(T) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let threads = available_parallelism().map_or(1, |n| n.get()).min(items.len());
    let items = Mutex::new(items.into_iter());
    let take = || items.lock().unwrap_or_else(PoisonError::into_inner).next();
    let run = || {
        while let Some(item) = take() {
            work(item)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        // This thread is one of them; if the host refuses others, it does everything.
        let others: Vec<_> = (1..threads)
            .filter_map(|_| std::thread::Builder::new().name("boot".into()).spawn_scoped(scope, run).ok())
            .collect();
        let mut result = run();
        for other in others {
            result = result.and(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn every_item_is_worked_on_once_and_failures_are_told() {
        let sum = AtomicU64::new(0);
        let add = |n: u64| {
            sum.fetch_add(n, Ordering::Relaxed);
            if n == 77 { Err(n) } else { Ok(()) }
        };
        assert_eq!(for_each((0..50).collect(), add), Ok(()));
        assert_eq!(sum.load(Ordering::Relaxed), 49 * 50 / 2);
        assert_eq!(for_each((0..100).collect(), add), Err(77));
        assert_eq!(for_each(Vec::new(), add), Ok(()));
    }
}
