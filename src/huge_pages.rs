//! Memory of which much is written at once.

use rustix::mm::{Advice, madvise};

/// Of less than this there is no whole huge page, or hardly one.
const ROOM_BYTES_MIN: usize = 4 << 20;

/// Asks the system for pages of two mebibytes behind the room that `memory` has, if that is large: it gets them sooner, and whoever
/// reads all over it finds them sooner. Where there are none, ordinary ones serve.
pub fn in_huge_pages<T>(memory: &mut Vec<T>) {
    let page = rustix::param::page_size();
    let room = memory.spare_capacity_mut();
    let bytes = size_of_val(room);
    if bytes < ROOM_BYTES_MIN {
        return;
    }
    let start = room.as_mut_ptr().cast::<u8>();
    let skipped = start.align_offset(page);
    let whole = bytes.saturating_sub(skipped) / page * page;
    // SAFETY: the pages lie within what `memory` owns, and the advice changes nothing that they hold.
    let advised = unsafe { madvise(start.wrapping_add(skipped).cast(), whole, Advice::LinuxHugepage) };
    if let Err(error) = advised {
        tracing::debug!("no huge pages: {error}");
    }
}
