#![no_main]
//! URLs of repositories: what is refused never repeats a secret.

use libfuzzer_sys::fuzz_target;
use vault::backend::location::Location;

fuzz_target!(|data: &str| {
    let _ = data.parse::<Location>();
    let secret = blake3::hash(data.as_bytes()).to_hex();
    for url in [format!("{data}://key:{secret}@host/bucket"), format!("s3://key:{secret}@{data}")] {
        // A path may hold an `@`: that is no secret.
        if let Err(error) = url.parse::<Location>() {
            assert!(!error.to_string().contains(secret.as_str()), "{error}");
        }
    }
});
