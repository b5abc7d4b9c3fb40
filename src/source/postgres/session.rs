//! What every session is told before it reads or writes data, so that the same data has the same text everywhere.

use super::client::Client;
use super::client::QueryError;

/// Settings under which values are written and read, whatever the server's, the database's and the role's are.
///
/// Those of pg_dump, and two more: with the time zone fixed a timestamp has one text, and with `lc_monetary` fixed so has
/// an amount of money, whatever the number of decimals of the server's own currency.
pub const TEXT_SETTINGS: &[(&str, &str)] = &[
    ("search_path", "''"),
    ("datestyle", "'ISO, MDY'"),
    ("intervalstyle", "postgres"),
    ("extra_float_digits", "3"),
    ("timezone", "'UTC'"),
    ("lc_monetary", "'C'"),
    ("bytea_output", "hex"),
    ("xmloption", "content"),
    ("standard_conforming_strings", "on"),
    ("client_encoding", "'UTF8'"),
    ("quote_all_identifiers", "off"),
];

/// Settings so that a long session is neither cut short nor shown less than everything.
const SESSION_SETTINGS: &[(&str, &str)] = &[
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("synchronize_seqscans", "off"),
    ("row_security", "off"),
    ("client_min_messages", "warning"),
];

/// The same for settings that came with a version.
const LATER_SETTINGS: &[(u32, &str, &str)] =
    &[(140_000, "idle_session_timeout", "0"), (170_000, "transaction_timeout", "0")];

/// Makes a session ready.
pub fn prepare(client: &mut Client) -> Result<(), QueryError> {
    let mut sql = String::new();
    let later =
        LATER_SETTINGS.iter().filter(|(since, ..)| client.version() >= *since).map(|(_, name, value)| (name, value));
    for (name, value) in TEXT_SETTINGS.iter().chain(SESSION_SETTINGS).map(|(name, value)| (name, value)).chain(later) {
        sql.push_str(&format!("SET {name} = {value};"));
    }
    client.execute(&sql).map(drop)
}
