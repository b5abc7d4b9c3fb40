//! Large objects: their definitions as SQL, and their content.
//!
//! pg_dump puts their definitions into one section or another, depending on its version, and their content needs rights
//! on a system table if it is read there. So both are read here, in ways that every role has that may read the objects.

use super::client::{Client, QueryError};
use super::quote::{ident, literal};

/// Content in pieces of 256 KiB: oid, offset, bytes; by oid and offset. An empty object has no row.
///
/// The nested loop keeps the order of the outer rows, so nothing is sorted and nothing gathers in the server.
pub const COPY_OUT: &str = "COPY (SELECT o.oid, p.at, pg_catalog.lo_get(o.oid, p.at, 262144) FROM \
    (SELECT s.oid, s.size FROM (SELECT f.oid, pg_catalog.lo_lseek64(f.fd, 0, 2) AS size, pg_catalog.lo_close(f.fd) \
    FROM (SELECT m.oid, pg_catalog.lo_open(m.oid, 262144) AS fd FROM pg_catalog.pg_largeobject_metadata m \
    ORDER BY m.oid OFFSET 0) f OFFSET 0) s WHERE s.size > 0 OFFSET 0) o, \
    LATERAL pg_catalog.generate_series(0::int8, o.size - 1, 262144::int8) AS p(at)) TO STDOUT";

/// Writes entries as pg_dump would: each object, its owner, comment, security labels and privileges.
pub fn definitions(client: &mut Client) -> Result<String, QueryError> {
    let mut text = String::new();
    let objects = client.query(
        "SELECT m.oid, r.rolname, pg_catalog.obj_description(m.oid, 'pg_largeobject'), m.lomacl IS NOT NULL \
         FROM pg_catalog.pg_largeobject_metadata m JOIN pg_catalog.pg_roles r ON r.oid = m.lomowner ORDER BY m.oid",
    )?;
    let labels = client.query(
        "SELECT objoid, provider, label FROM pg_catalog.pg_seclabels WHERE objtype = 'large object' ORDER BY 1, 2",
    )?;
    let grants = client.query(
        "SELECT m.oid, coalesce(g.rolname, ''), coalesce(r.rolname, ''), x.privilege_type, x.is_grantable \
         FROM pg_catalog.pg_largeobject_metadata m, \
         LATERAL pg_catalog.aclexplode(m.lomacl) WITH ORDINALITY AS x(grantor, grantee, privilege_type, is_grantable, place) \
         LEFT JOIN pg_catalog.pg_roles g ON g.oid = x.grantor LEFT JOIN pg_catalog.pg_roles r ON r.oid = x.grantee \
         WHERE m.lomacl IS NOT NULL ORDER BY m.oid, x.place",
    )?;
    let (mut label_at, mut grant_at) = (0, 0);
    for object in &objects {
        let (oid, owner) = (object.text(0), object.text(1));
        let mut entry = |name: &str, kind: &str, sql: &str| {
            text.push_str(&format!(
                "--\n-- Name: {name}; Type: {kind}; Schema: -; Owner: {}\n--\n\n{sql}\n\n\n",
                owner.replace(['\n', '\r'], " ")
            ));
        };
        let this = format!("LARGE OBJECT {oid}");
        entry(
            oid,
            "BLOB",
            &format!("SELECT pg_catalog.lo_create('{oid}');\n\n\nALTER {this} OWNER TO {};", ident(owner)),
        );
        if let Some(comment) = object.optional(2) {
            entry(&this, "COMMENT", &format!("COMMENT ON {this} IS {};", literal(comment)));
        }
        while let Some(label) = labels.get(label_at).filter(|label| label.text(0) == oid) {
            let (provider, label) = (ident(label.text(1)), literal(label.text(2)));
            entry(&this, "SECURITY LABEL", &format!("SECURITY LABEL FOR {provider} ON {this} IS {label};"));
            label_at += 1;
        }
        if object.is_true(3) {
            let mut sql = format!("REVOKE ALL ON {this} FROM {};", ident(owner));
            while let Some(grant) = grants.get(grant_at).filter(|grant| grant.text(0) == oid) {
                let (by, to) = (grant.text(1), grant.text(2));
                let to = if to.is_empty() { "PUBLIC".to_owned() } else { ident(to) };
                let option = if grant.is_true(4) { " WITH GRANT OPTION" } else { "" };
                let statement = format!("GRANT {} ON {this} TO {to}{option};", grant.text(3));
                if by == owner || by.is_empty() {
                    sql.push_str(&format!("\n{statement}"));
                } else {
                    sql.push_str(&format!(
                        "\nSET SESSION AUTHORIZATION {};\n{statement}\nRESET SESSION AUTHORIZATION;",
                        ident(by)
                    ));
                }
                grant_at += 1;
            }
            entry(&this, "ACL", &sql);
        }
    }
    Ok(text)
}
