//! A panic as an error that can be told, in place of an end without a word.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};

thread_local! {
    /// What a panic on this thread said, and where.
    static SAID: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Does something; a panic on this thread is printed as ever, and becomes an error with its place and words.
pub(crate) fn told<T>(act: impl FnOnce() -> T) -> Result<T, String> {
    let before = take_hook();
    set_hook(Box::new(move |info| {
        let text = info.payload().downcast_ref::<&str>().copied();
        let words = text.or_else(|| info.payload().downcast_ref::<String>().map(String::as_str));
        let words = words.unwrap_or("without a word");
        let place = info.location().map(|place| format!(" at {}:{}", place.file(), place.line())).unwrap_or_default();
        SAID.with_borrow_mut(|said| *said = Some(format!("a panic{place}: {words}")));
        before(info);
    }));
    // What the act held is not looked at again: the process is about to end.
    let done = catch_unwind(AssertUnwindSafe(act));
    done.map_err(|_| SAID.take().unwrap_or_else(|| "a panic".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_told_with_its_place() {
        assert_eq!(told(|| 7), Ok(7));
        let said = told(|| -> u32 { panic!("{} of {}", 3, 4) }).unwrap_err();
        assert!(said.starts_with("a panic at ") && said.contains("panics.rs:") && said.ends_with(": 3 of 4"), "{said}");
    }
}
