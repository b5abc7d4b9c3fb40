#![no_main]
//! Config objects: as they come from the store, and with a MAC that fits.

use libfuzzer_sys::fuzz_target;
use vault::format::config::Config;

fuzz_target!(|data: &[u8]| {
    let keys = vault_fuzz::keys();
    if let Ok(unchecked) = Config::decode(data) {
        let _ = unchecked.check(|text| keys.config_mac(text));
    }
    let raw = [data, b"\n", blake3::Hash::from(keys.config_mac(data)).to_hex().as_bytes(), b"\n"].concat();
    if let Ok(config) = Config::decode(&raw).and_then(|unchecked| unchecked.check(|text| keys.config_mac(text))) {
        let again = config.encode(|text| keys.config_mac(text));
        let again = Config::decode(&again).and_then(|unchecked| unchecked.check(|text| keys.config_mac(text)));
        assert_eq!(again.unwrap(), config, "a config survives being written");
    }
});
