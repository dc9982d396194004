//! Advice to the kernel about guest memory.

use vm_memory::MmapRegion;

/// Keeps a region out of core dumps: guest secrets do not belong into a dump of the VMM.
pub fn no_core_dump(region: &MmapRegion) {
    advise(region, libc::MADV_DONTDUMP);
}

/// Asks for transparent huge pages.
pub fn huge_pages(region: &MmapRegion) {
    advise(region, libc::MADV_HUGEPAGE);
}

/// Advice that is not taken costs nothing, so errors are ignored.
fn advise(region: &MmapRegion, advice: libc::c_int) {
    // SAFETY: the range is exactly one live mapping, and neither piece of advice changes its contents.
    unsafe { libc::madvise(region.as_ptr().cast(), region.size(), advice) };
}
