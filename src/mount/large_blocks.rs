//! Large blocks of memory, from the kernel itself.
//!
//! `fuser` gives each of its threads a zeroed buffer of 16 MiB, for writes that never come to a read-only file system. The libc that
//! zig links writes the zeros, and so all of each buffer would be resident. Pages that come from the kernel are zero already, and
//! those that nobody uses take no memory. To see to that is the global allocator's business, which takes unsafe code.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;

use crate::constants::PAGE;

/// The length of the smallest block that is taken from the kernel.
const LARGE: usize = 8 << 20;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

struct Allocator;

fn is_large(layout: Layout) -> bool {
    layout.size() >= LARGE && layout.align() <= PAGE
}

/// Fresh pages, all zero; null if there are none.
fn map(size: usize) -> *mut u8 {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping overlaps nothing, and advice changes no memory.
    unsafe {
        let block = libc::mmap(ptr::null_mut(), size, protection, flags, -1, 0);
        if block == libc::MAP_FAILED {
            return ptr::null_mut();
        }
        // The first byte used would bring 2 MiB with it.
        libc::madvise(block, size, libc::MADV_NOHUGEPAGE);
        block.cast()
    }
}

// SAFETY: the layout alone decides whose a block is, so it goes back where it came from. The kernel's are zero, as long as was asked
// for, and aligned to a page.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_large(layout) { map(layout.size()) } else { unsafe { System.alloc(layout) } }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_large(layout) { map(layout.size()) } else { unsafe { System.alloc_zeroed(layout) } }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if is_large(layout) {
            unsafe { libc::munmap(block.cast(), layout.size()) };
        } else {
            unsafe { System.dealloc(block, layout) }
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller vouches for the size.
        let new_layout = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        if !is_large(layout) && !is_large(new_layout) {
            return unsafe { System.realloc(block, layout, new_size) };
        }
        // SAFETY: both blocks are at least as long as what is copied.
        unsafe {
            let new_block = self.alloc(new_layout);
            if !new_block.is_null() {
                ptr::copy_nonoverlapping(block, new_block, layout.size().min(new_size));
                self.dealloc(block, layout);
            }
            new_block
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_keep_their_bytes_when_they_grow_and_shrink_across_the_limit() {
        let mut bytes = vec![7_u8; LARGE / 2];
        for length in [LARGE, 2 * LARGE, LARGE + 1, LARGE - 1, 1000, 3 * LARGE] {
            bytes.resize(length, 7);
            bytes.shrink_to_fit();
            assert!(bytes.len() == length && bytes.iter().all(|byte| *byte == 7));
        }
        assert!(vec![0_u8; LARGE].iter().all(|byte| *byte == 0));
    }
}
