#![no_main]
//! The command line: times, sizes, shares, keep rules and everything else that people type. Words are split by newlines.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &str| {
    let words = std::iter::once("vault").chain(data.split('\n'));
    if let Err(error) = vault::cli::command().try_get_matches_from(words) {
        let _ = error.to_string();
    }
});
