//! The `vault` command.

fn main() -> std::process::ExitCode {
    give_back_large_buffers();
    vault::cli::main()
}

/// Has glibc give every buffer of a mebibyte and more back to the system once it is freed. By itself it learns from the first one
/// that is freed to keep them, for each thread its own: half as much memory again, and no time saved (docs/performance.md).
fn give_back_large_buffers() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a number, and no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
    }
}
