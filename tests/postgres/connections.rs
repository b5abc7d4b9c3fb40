//! The ways to a server: a Unix socket, TLS with and without a known authority. On a server of their own.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use vault::progress::Progress;
use vault::source::postgres::{Client, Dsn, ErrorKind, Halt, PostgresError, Settings, SslMode, restore};

use crate::command_line::show;
use crate::every_kind::{assert_same, dump, restore_options, said, snapshot_options, take};
use crate::harness::Home;
use crate::server::{Server, skipped};

/// A server of its own, stopped in the end, that also listens on a Unix socket.
struct Own {
    server: Server,
    folder: PathBuf,
    sockets: tempfile::TempDir,
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers/postgres.sh")
}

impl Own {
    /// Starts it; `None`, and the test named as skipped, where there are no servers to test on.
    fn start(test: &str) -> Option<Own> {
        Server::get(test)?;
        // A socket's path must be short, and the server's own user has to write there.
        let sockets = tempfile::Builder::new().prefix("pg").tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(sockets.path(), PermissionsExt::from_mode(0o777)).unwrap();
        let output = Command::new(script())
            .args(["start", "--owner", &std::process::id().to_string()])
            .env("VAULT_TEST_PG_ARGS", format!("-c unix_socket_directories={}", sockets.path().display()))
            .output()
            .expect("the script can be run");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let given = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("export {name}=")));
            line.map(|value| value.trim_matches('\'').to_owned())
        };
        let folder = PathBuf::from(given("VAULT_SERVER_DIR").expect("the script says where it lies"));
        let own = Own { server: Server::at(Settings::from_env(given).unwrap()), folder, sockets };
        let rules = "local all all scram-sha-256\nhost all all 127.0.0.1/32 scram-sha-256\n";
        std::fs::write(own.data("pg_hba.conf"), rules).unwrap();
        own.server.run("postgres", "SELECT pg_reload_conf()");
        Some(own)
    }

    fn data(&self, name: &str) -> PathBuf {
        self.folder.join("data").join(name)
    }

    /// Turns TLS on, with a certificate for `localhost` that `authority` signs.
    fn use_tls(&self, authority: &Authority) {
        authority.sign("server", "DNS:localhost");
        let owner = std::fs::metadata(self.data("pg_hba.conf")).unwrap();
        for name in ["server.crt", "server.key"] {
            std::fs::copy(authority.folder.path().join(name), self.data(name)).unwrap();
            chown(self.data(name), Some(owner.uid()), Some(owner.gid())).unwrap();
            std::fs::set_permissions(self.data(name), PermissionsExt::from_mode(0o600)).unwrap();
        }
        self.server.run("postgres", "ALTER SYSTEM SET ssl = on");
        self.server.run("postgres", "SELECT pg_reload_conf()");
        let on = (0..100).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(50));
            let tls = Settings { ssl_mode: SslMode::Require, ..self.server.settings.clone() };
            Client::connect(&tls, "postgres", &Halt::new(&Progress::default())).is_ok()
        });
        assert!(on, "the server takes its certificate");
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = Command::new(script()).arg("stop").arg(&self.folder).output();
    }
}

/// A certificate authority that lives as long as a test.
struct Authority {
    folder: tempfile::TempDir,
}

impl Authority {
    fn new() -> Authority {
        let authority = Authority { folder: tempfile::tempdir().unwrap() };
        authority.openssl(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=throwaway \
             -addext basicConstraints=critical,CA:TRUE -keyout ca.key -out ca.crt",
        );
        authority
    }

    fn sign(&self, name: &str, names: &str) {
        std::fs::write(self.folder.path().join("names"), format!("subjectAltName={names}\n")).unwrap();
        self.openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"
        ));
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile names -out {name}.crt"
        ));
    }

    fn openssl(&self, arguments: &str) {
        let output = Command::new("openssl")
            .args(arguments.split_whitespace())
            .current_dir(self.folder.path())
            .output()
            .expect("openssl comes with Debian's PostgreSQL");
        assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn certificate(&self) -> PathBuf {
        self.folder.path().join("ca.crt")
    }
}

/// Takes a snapshot over a connection and brings it back over the same.
fn goes_there_and_back(server: &mut Server, connection: &Settings) {
    let database = server.database();
    server.run(
        &database,
        "CREATE TABLE t (i integer PRIMARY KEY, t text); CREATE INDEX ON t (t);
         INSERT INTO t SELECT i, md5(i::text) FROM generate_series(1, 50000) i",
    );
    let kept = take(&snapshot_options(connection, &database)).unwrap_or_else(|e| panic!("{}", said(&e)));
    assert_eq!(kept.item(&format!("{database}/table/public/t")).unwrap().rows, Some(50_000));
    let into = server.database_name();
    restore(&restore_options(connection, &into), &kept, &Progress::default())
        .unwrap_or_else(|e| panic!("{}", said(&e)));
    assert_same(&dump(server, &database), &dump(server, &into), "dump");
}

/// What a connection says of itself.
fn value(settings: &Settings, sql: &str) -> String {
    let mut client = Client::connect(settings, "postgres", &Halt::new(&Progress::default())).unwrap();
    client.query(sql).unwrap()[0].text(0).to_owned()
}

#[track_caller]
fn refused(settings: &Settings, words: &[&str]) {
    let error = match Client::connect(settings, "postgres", &Halt::new(&Progress::default())) {
        Err(error) => error,
        Ok(_) => panic!("it is let in"),
    };
    let text = said(&error);
    assert_eq!(error.kind(), ErrorKind::Source, "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is missing from: {text}");
    }
}

#[test]
fn a_unix_socket_is_a_way_too() {
    let Some(mut own) = Own::start("a_unix_socket_is_a_way_too") else { return };
    let socket = own.sockets.path().display().to_string();
    let (port, user) = (own.server.settings.port, own.server.settings.user.clone());
    let password = own.server.settings.password.clone();
    let dsn = format!("host={socket} port={port} user={user}");
    let settings = Settings { password, ..Settings::resolve(Some(Dsn::Hidden(&dsn)), |_| None).unwrap() };
    assert_eq!(value(&settings, "SELECT inet_server_addr() IS NULL"), "t", "it is no TCP connection");
    goes_there_and_back(&mut own.server, &settings);
    // libpq has no TLS over a socket, and neither have we.
    let tls = Settings { ssl_mode: SslMode::Require, ..settings.clone() };
    assert_eq!(value(&tls, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"), "f");

    let nobody = Settings { port: 1, ..settings };
    let result = take(&snapshot_options(&nobody, "postgres"));
    assert!(matches!(result, Err(PostgresError::Unreachable { ref at, .. }) if at.contains(&socket)));
}

#[test]
fn tls_is_used_and_checked_as_far_as_it_is_asked_for() {
    const TEST: &str = "tls_is_used_and_checked_as_far_as_it_is_asked_for";
    if Command::new("openssl").arg("version").output().is_err() {
        return skipped(TEST, "openssl is not installed");
    }
    let Some(mut own) = Own::start(TEST) else { return };
    let plain = own.server.settings.clone();
    refused(&Settings { ssl_mode: SslMode::Require, ..plain.clone() }, &["no TLS", "sslmode is require"]);

    let (authority, stranger) = (Authority::new(), Authority::new());
    own.use_tls(&authority);
    let with = |ssl_mode, ssl_root_cert: Option<&Authority>, host: &str| {
        let dsn = format!("host={host}");
        let host = Settings::resolve(Some(Dsn::Hidden(&dsn)), |_| None).unwrap().host;
        Settings { ssl_mode, ssl_root_cert: ssl_root_cert.map(Authority::certificate), host, ..plain.clone() }
    };
    let is_tls = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    for (mode, root, host, tls) in [
        (SslMode::Disable, None, "127.0.0.1", "f"),
        (SslMode::Prefer, None, "127.0.0.1", "t"),
        (SslMode::Require, None, "127.0.0.1", "t"),
        (SslMode::Require, Some(&authority), "127.0.0.1", "t"),
        (SslMode::VerifyCa, Some(&authority), "127.0.0.1", "t"),
        (SslMode::VerifyFull, Some(&authority), "localhost", "t"),
    ] {
        assert_eq!(value(&with(mode, root, host), is_tls), tls, "{mode:?} {host}");
    }
    // pg_dump goes the same way.
    goes_there_and_back(&mut own.server, &with(SslMode::Require, None, "127.0.0.1"));
    goes_there_and_back(&mut own.server, &with(SslMode::VerifyFull, Some(&authority), "localhost"));

    // Without a file it is the system that knows the authorities, for us and for pg_dump.
    let database = own.server.database();
    let mut home = Home::with_repository();
    show(&mut home, &with(SslMode::VerifyFull, None, "localhost"));
    home.set("PGSSLMODE", "verify-full");
    let snapshot = ["snapshot", "postgres", "--database", &database];
    let system = |authority: &Authority| authority.certificate().display().to_string();
    home.run_with("SSL_CERT_FILE", &system(&authority), &snapshot).ok();
    let refusal = home.run_with("SSL_CERT_FILE", &system(&stranger), &snapshot);
    refusal.fails(refusal.code, &["certificate", "the system trusts", "PGSSLROOTCERT"]);
    assert_ne!(refusal.code, 0);

    let file = stranger.certificate().display().to_string();
    for mode in [SslMode::Require, SslMode::VerifyCa, SslMode::VerifyFull] {
        refused(
            &with(mode, Some(&stranger), "localhost"),
            &["localhost", "certificate", &file, "PGSSLROOTCERT", mode.as_str()],
        );
    }
    let other_name = with(SslMode::VerifyFull, Some(&authority), "127.0.0.1");
    refused(&other_name, &["127.0.0.1", "certificate", "another name", "verify-ca"]);
    let missing = Settings { ssl_root_cert: Some("/nowhere/ca.crt".into()), ..other_name };
    refused(&missing, &["/nowhere/ca.crt"]);

    // Who must come over TLS is let in over TLS, and told so otherwise.
    std::fs::write(own.data("pg_hba.conf"), "hostssl all all 127.0.0.1/32 scram-sha-256\n").unwrap();
    own.server.run("postgres", "SELECT pg_reload_conf()");
    let shut = (0..100).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(50));
        Client::connect(&with(SslMode::Disable, None, "127.0.0.1"), "postgres", &Halt::new(&Progress::default()))
            .is_err()
    });
    assert!(shut, "the server has read its rules");
    refused(&with(SslMode::Disable, None, "127.0.0.1"), &["pg_hba.conf", "no encryption"]);
    assert_eq!(value(&with(SslMode::Prefer, None, "127.0.0.1"), is_tls), "t");
}
