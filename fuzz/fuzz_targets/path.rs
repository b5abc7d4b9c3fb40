#![no_main]
//! Names of other people as components of item paths.

use libfuzzer_sys::fuzz_target;
use vault::format::manifest::check_item_path;
use vault::source::{escape_component, unescape_component};

fuzz_target!(|data: &str| {
    let component = escape_component(data);
    assert_eq!(unescape_component(&component).as_deref(), Some(data), "every name comes back");
    assert!(component.len() > 4096 || check_item_path(&component).is_ok(), "{component:?} can stand in a path");
    assert!(!component.contains('/'), "one component");
    if let Some(name) = unescape_component(data) {
        assert_eq!(escape_component(&name), data, "one spelling a name");
    }
});
