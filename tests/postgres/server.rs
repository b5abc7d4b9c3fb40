//! The PostgreSQL that the tests are given, and throwaway databases and roles on it.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use vault::progress::Progress;
use vault::source::postgres::{Client, Halt, Password, Settings, ident};

/// A server, and what was made on it; dropped, all of that goes.
pub struct Server {
    pub settings: Settings,
    pub databases: Vec<String>,
    roles: Vec<String>,
    tablespaces: Vec<String>,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Names a test that cannot run here.
pub fn skipped(test: &str, why: &str) {
    // Not `println`, which the test harness swallows.
    let _ = writeln!(std::io::stdout().lock(), "SKIPPED postgres::{test}: {why}; tests/run sets it");
}

impl Server {
    /// The server of `VAULT_TEST_PGHOST` and so on; `None`, and the test named as skipped, without one.
    pub fn get(test: &str) -> Option<Server> {
        let lookup = |name: &str| std::env::var(format!("VAULT_TEST_{name}")).ok();
        if lookup("PGHOST").is_none() {
            skipped(test, "VAULT_TEST_PGHOST is not set");
            return None;
        }
        Some(Server::at(Settings::from_env(lookup).expect("VAULT_TEST_PG* are usable")))
    }

    /// A server that somebody else started.
    pub fn at(settings: Settings) -> Server {
        Server {
            settings: Settings { database: None, ..settings },
            databases: Vec::new(),
            roles: Vec::new(),
            tablespaces: Vec::new(),
        }
    }

    /// A name that nobody else uses.
    pub fn name(&self, kind: &str) -> String {
        format!("vault_test_{kind}_{}_{}", std::process::id(), NEXT.fetch_add(1, Relaxed))
    }

    /// A name for a database that is dropped at the end, if it exists then.
    pub fn database_name(&mut self) -> String {
        let name = self.name("db");
        self.databases.push(name.clone());
        name
    }

    /// A new database.
    pub fn database(&mut self) -> String {
        let name = self.database_name();
        self.run("postgres", &format!("CREATE DATABASE {}", ident(&name)));
        name
    }

    /// A new role with a password.
    pub fn role(&mut self, options: &str) -> String {
        let name = self.name("role");
        self.run("postgres", &format!("CREATE ROLE {} PASSWORD 'sesame' {options}", ident(&name)));
        self.roles.push(name.clone());
        name
    }

    /// A new tablespace, inside the server's own folder.
    pub fn tablespace(&mut self) -> String {
        let name = self.name("space");
        let mut client = self.client("postgres");
        client.execute("SET allow_in_place_tablespaces = on").expect("the server is PostgreSQL 15 or later");
        client.execute(&format!("CREATE TABLESPACE {name} LOCATION ''")).unwrap();
        self.tablespaces.push(name.clone());
        name
    }

    /// Another login on the same server.
    pub fn login(&self, role: &str) -> Settings {
        Settings { user: role.to_owned(), password: Some(Password::new("sesame")), ..self.settings.clone() }
    }

    pub fn client(&self, database: &str) -> Client {
        Client::connect(&self.settings, database, &Halt::new(&Progress::default())).expect("the server answers")
    }

    /// Runs SQL as superuser.
    pub fn run(&self, database: &str, sql: &str) {
        self.client(database).execute(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
    }

    /// The first value that a query gives.
    pub fn value(&self, database: &str, sql: &str) -> String {
        let rows = self.client(database).query(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
        rows.first().map_or(String::new(), |row| row.text(0).to_owned())
    }

    /// A tool of PostgreSQL, connected to `database`.
    pub fn tool(&self, tool: &str, database: &str) -> Command {
        let mut command = Command::new(tool);
        command
            .env("PGHOST", self.settings.host.to_string())
            .env("PGPORT", self.settings.port.to_string())
            .env("PGUSER", &self.settings.user)
            .env("PGPASSWORD", self.settings.password.as_ref().map_or("", Password::reveal))
            .env("PGDATABASE", database)
            .stdin(Stdio::null());
        command
    }

    /// The output of a tool that must succeed.
    pub fn output(&self, tool: &str, database: &str, arguments: &[&str]) -> Vec<u8> {
        let output = self.tool(tool, database).args(arguments).output().expect("the tool starts");
        assert!(output.status.success(), "{tool} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Ok(mut client) = Client::connect(&self.settings, "postgres", &Halt::new(&Progress::default())) else {
            return;
        };
        for database in &self.databases {
            // A database with a subscription cannot be dropped.
            if let Ok(mut inside) = Client::connect(&self.settings, database, &Halt::new(&Progress::default())) {
                let _ = inside.execute("DROP SUBSCRIPTION IF EXISTS off");
            }
            let _ = client.execute(&format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", ident(database)));
        }
        for tablespace in &self.tablespaces {
            let _ = client.execute(&format!("DROP TABLESPACE IF EXISTS {tablespace}"));
        }
        for role in &self.roles {
            let _ = client.execute(&format!("DROP ROLE IF EXISTS {}", ident(role)));
        }
    }
}
