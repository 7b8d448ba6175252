//! Large copies and sums, spread over as many threads as libtorch uses.

use std::ops::Range;

/// Bytes that are worth a thread, which takes some tens of microseconds to start.
const WORTH_A_THREAD: usize = 4 << 20;
/// Threads meet at multiples of this, so that they write to no cache line together.
const ELEMENTS: usize = 64;

/// An address that threads may have: whoever spreads work over them sees to it that they do not meet.
#[derive(Clone, Copy)]
pub(super) struct Address<T>(pub(super) *mut T);

// SAFETY: the promise above.
unsafe impl<T> Send for Address<T> {}
// SAFETY: the promise above.
unsafe impl<T> Sync for Address<T> {}

impl<T> Address<T> {
    /// The address itself.
    pub(super) fn get(self) -> *mut T {
        self.0
    }
}

/// Does `work` on `count` elements of `bytes` bytes, each once.
pub(super) fn spread(count: usize, bytes: usize, work: impl Fn(Range<usize>) + Sync) {
    let worth = count.saturating_mul(bytes) / WORTH_A_THREAD;
    let threads = if worth > 1 { worth.min(usize::try_from(tch::get_num_threads()).unwrap_or(1)) } else { 1 };
    spread_over(threads, count, work);
}

fn spread_over(threads: usize, count: usize, work: impl Fn(Range<usize>) + Sync) {
    if threads <= 1 || count == 0 {
        return work(0..count);
    }
    let length = count.div_ceil(threads).next_multiple_of(ELEMENTS);
    std::thread::scope(|scope| {
        let work = &work;
        for begin in (length..count).step_by(length) {
            let range = begin..count.min(begin + length);
            let thread = std::thread::Builder::new().name("shm".to_owned());
            if thread
                .spawn_scoped(scope, {
                    let range = range.clone();
                    move || work(range)
                })
                .is_err()
            {
                work(range);
            }
        }
        work(0..length.min(count));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn each_element_is_worked_on_once() {
        for threads in 0..6 {
            for count in [0, 1, 63, 64, 65, 128, 1000, 12_345] {
                let ranges = Mutex::new(Vec::new());
                spread_over(threads, count, |range| ranges.lock().unwrap().push(range));
                let mut ranges = ranges.into_inner().unwrap();
                ranges.sort_by_key(|range| range.start);
                let joined = ranges.iter().fold(0, |end, range| {
                    assert_eq!(range.start, end, "{threads} threads, {count}");
                    range.end
                });
                assert_eq!(joined, count, "{threads} threads");
                assert!(ranges.len() <= threads.max(1));
            }
        }
    }
}
