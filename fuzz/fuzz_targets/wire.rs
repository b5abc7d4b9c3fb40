#![no_main]
//! What a PostgreSQL server answers, from its first byte on or after a login that went well.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vault::progress::Progress;
use vault::source::postgres::{Client, Halt, Settings};

static LISTENER: LazyLock<TcpListener> = LazyLock::new(|| TcpListener::bind("127.0.0.1:0").unwrap());
/// Authentication ok, ready, and the answer to the question for the version.
const LOGGED_IN: &[u8] =
    b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05IT\0\0\0\x06\0\0D\0\0\0\x10\0\x01\0\0\0\x06150000C\0\0\0\x09SHOW\0Z\0\0\0\x05I";

fuzz_target!(|data: &[u8]| {
    let Some((first, answer)) = data.split_first() else { return };
    let port = LISTENER.local_addr().unwrap().port().to_string();
    let lookup = |name: &str| match name {
        "PGHOST" => Some("127.0.0.1".to_owned()),
        "PGPORT" => Some(port.clone()),
        "PGUSER" | "PGPASSWORD" => Some("x".to_owned()),
        "PGSSLMODE" => Some("disable".to_owned()),
        _ => None,
    };
    let settings = Settings::from_env(lookup).unwrap();
    std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            let (mut server, _) = LISTENER.accept().unwrap();
            let _ = server.write_all(if first & 1 == 1 { LOGGED_IN } else { b"" });
            let _ = server.write_all(answer);
            let _ = server.shutdown(Shutdown::Write);
            let _ = server.read_to_end(&mut Vec::new());
        });
        if let Ok(mut client) = Client::connect(&settings, "x", &Halt::new(&Progress::default())) {
            let _ = match first >> 1 & 3 {
                0 => client.query("SELECT").map(|_| ()),
                1 => client.execute("UPDATE").map(|_| ()),
                2 => client.copy_out("COPY", &mut |_| Ok(())).map(|_| ()),
                _ => client.copy_in("COPY", &mut |to| to.write_all(b"1\n")).map(|_| ()),
            };
        }
        // The scope itself ends with the closure. What the thread still holds then would be taken for a leak.
        server.join().unwrap();
    });
});
