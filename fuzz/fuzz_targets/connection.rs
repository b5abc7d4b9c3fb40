#![no_main]
//! Connection strings and settings of PostgreSQL.

use libfuzzer_sys::fuzz_target;
use vault::source::postgres::{Dsn, Settings};

fuzz_target!(|data: &str| {
    // That would read a file of the fuzzer's choice.
    if data.contains("passfile") {
        return;
    }
    let (dsn, port) = data.split_once('\0').unwrap_or((data, ""));
    let _ = Settings::resolve(Some(Dsn::Hidden(dsn)), |_| None);
    if let Ok(settings) = Settings::resolve(Some(Dsn::Argument(dsn)), |_| None) {
        assert!(settings.password.is_none(), "a password in an argument is refused");
    }
    let _ = Settings::from_env(|name| (name == "PGPORT" || name == "PGCONNECT_TIMEOUT").then(|| port.to_owned()));
});
