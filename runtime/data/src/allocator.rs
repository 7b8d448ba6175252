//! The programs' allocator: the system's, with words where a chat template wants more memory than there is.

use std::alloc::{GlobalAlloc, Layout, System};

use crate::template::end_without_memory;

/// The system's allocator. Where it has no more, and this thread renders a chat template, the program ends with an error that names the
/// template, in place of being aborted.
pub struct Allocator;

/// What the system gave; does not return where that is nothing, and a template wanted it.
fn given(pointer: *mut u8) -> *mut u8 {
    if pointer.is_null() {
        end_without_memory();
    }
    pointer
}

// SAFETY: all four are the system's own, with the caller's arguments; where they fail the program may end, which is no unwinding.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps to the same contract.
        given(unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps to the same contract.
        given(unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller keeps to the same contract.
        given(unsafe { System.realloc(pointer, layout, size) })
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps to the same contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}
