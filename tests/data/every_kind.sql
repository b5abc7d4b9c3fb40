-- A database with every kind of object that PostgreSQL 15 has, after the list of SQL commands in its documentation.
-- Loaded by psql into an empty database by a superuser. :role_a, :role_b, :role_c are roles that exist.
-- What cannot be here: tablespaces (a folder of the server), security labels (no provider in a plain server), ALTER SYSTEM.
SET client_min_messages = warning;
\set ON_ERROR_STOP on

COMMENT ON DATABASE :"dbname" IS 'every kind of object; "quotes", it''s \ and a
line break';
ALTER DATABASE :"dbname" SET work_mem = '5MB';
ALTER DATABASE :"dbname" SET search_path = 'Odd "Schema', public;
ALTER ROLE :"role_a" IN DATABASE :"dbname" SET work_mem = '6MB';
ALTER DATABASE :"dbname" CONNECTION LIMIT 77;
REVOKE CONNECT ON DATABASE :"dbname" FROM PUBLIC;
GRANT CONNECT, TEMPORARY ON DATABASE :"dbname" TO :"role_a" WITH GRANT OPTION;
SET search_path = public;

-- Schemas
CREATE SCHEMA "Odd ""Schema" AUTHORIZATION :"role_a";
COMMENT ON SCHEMA "Odd ""Schema" IS 'a schema with a name';
CREATE SCHEMA ext;
CREATE SCHEMA hidden;
GRANT USAGE ON SCHEMA hidden TO :"role_b";
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO PUBLIC;

-- Extensions, one with tables of its own whose rows are the user's
CREATE EXTENSION hstore SCHEMA ext;
CREATE EXTENSION citext SCHEMA ext;
CREATE EXTENSION btree_gist SCHEMA ext;
CREATE EXTENSION pg_trgm SCHEMA ext;
CREATE EXTENSION postgres_fdw;
CREATE EXTENSION file_fdw;
CREATE EXTENSION tsm_system_rows SCHEMA ext;
CREATE EXTENSION unaccent SCHEMA ext;
CREATE EXTENSION lo SCHEMA ext;
COMMENT ON EXTENSION hstore IS 'a comment of ours on an extension';

-- Types: domain, enum, composite, range with multirange, shell, base
CREATE DOMAIN positive AS integer DEFAULT 1 NOT NULL CONSTRAINT is_positive CHECK (VALUE > 0);
CREATE DOMAIN short_text AS text COLLATE "C" CHECK (length(VALUE) < 2000);
ALTER DOMAIN short_text ADD CONSTRAINT later CHECK (VALUE <> 'never') NOT VALID;
COMMENT ON DOMAIN positive IS 'more than nothing';
COMMENT ON CONSTRAINT is_positive ON DOMAIN positive IS 'a constraint of a domain';
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy', 'it''s "odd"');
ALTER TYPE mood ADD VALUE 'between' BEFORE 'happy';
COMMENT ON TYPE mood IS 'an enum';
GRANT USAGE ON TYPE mood TO :"role_a";
CREATE TYPE pair AS (a integer, "b B" text COLLATE "C");
COMMENT ON COLUMN pair.a IS 'an attribute of a type';
CREATE FUNCTION float8_distance(float8, float8) RETURNS float8 LANGUAGE sql IMMUTABLE AS 'SELECT $1 - $2';
CREATE TYPE span AS RANGE (subtype = float8, subtype_diff = float8_distance, multirange_type_name = spans);
CREATE TYPE only_a_shell;
CREATE TYPE label;
CREATE FUNCTION label_in(cstring) RETURNS label LANGUAGE internal IMMUTABLE STRICT AS 'textin';
CREATE FUNCTION label_out(label) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';
CREATE FUNCTION label_recv(internal) RETURNS label LANGUAGE internal STABLE STRICT AS 'textrecv';
CREATE FUNCTION label_send(label) RETURNS bytea LANGUAGE internal STABLE STRICT AS 'textsend';
CREATE TYPE label (INPUT = label_in, OUTPUT = label_out, RECEIVE = label_recv, SEND = label_send,
  INTERNALLENGTH = variable, STORAGE = extended, COLLATABLE = true, CATEGORY = 'S');
CREATE DOMAIN mood_list AS mood[];

-- Casts, operators, operator classes and families
CREATE CAST (label AS text) WITHOUT FUNCTION AS IMPLICIT;
CREATE CAST (text AS label) WITH INOUT AS ASSIGNMENT;
COMMENT ON CAST (text AS label) IS 'a cast';
CREATE FUNCTION pair_cmp(pair, pair) RETURNS integer LANGUAGE sql IMMUTABLE
  AS $$ SELECT CASE WHEN ($1).a < ($2).a THEN -1 WHEN ($1).a > ($2).a THEN 1 ELSE 0 END $$;
CREATE FUNCTION pair_lt(pair, pair) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$ SELECT ($1).a < ($2).a $$;
CREATE FUNCTION pair_le(pair, pair) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$ SELECT ($1).a <= ($2).a $$;
CREATE FUNCTION pair_eq(pair, pair) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$ SELECT ($1).a = ($2).a $$;
CREATE FUNCTION pair_ge(pair, pair) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$ SELECT ($1).a >= ($2).a $$;
CREATE FUNCTION pair_gt(pair, pair) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$ SELECT ($1).a > ($2).a $$;
CREATE OPERATOR #< (LEFTARG = pair, RIGHTARG = pair, FUNCTION = pair_lt, COMMUTATOR = #>, NEGATOR = #>=, RESTRICT = scalarltsel, JOIN = scalarltjoinsel);
CREATE OPERATOR #<= (LEFTARG = pair, RIGHTARG = pair, FUNCTION = pair_le);
CREATE OPERATOR #= (LEFTARG = pair, RIGHTARG = pair, FUNCTION = pair_eq, COMMUTATOR = #=, HASHES, MERGES);
CREATE OPERATOR #>= (LEFTARG = pair, RIGHTARG = pair, FUNCTION = pair_ge);
CREATE OPERATOR #> (LEFTARG = pair, RIGHTARG = pair, FUNCTION = pair_gt);
CREATE FUNCTION pair_not(pair) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$ SELECT ($1).a IS NULL $$;
CREATE OPERATOR !! (RIGHTARG = pair, FUNCTION = pair_not);
COMMENT ON OPERATOR #< (pair, pair) IS 'an operator';
CREATE OPERATOR FAMILY pair_family USING btree;
CREATE OPERATOR CLASS pair_ops FOR TYPE pair USING btree FAMILY pair_family AS
  OPERATOR 1 #<, OPERATOR 2 #<=, OPERATOR 3 #=, OPERATOR 4 #>=, OPERATOR 5 #>, FUNCTION 1 pair_cmp(pair, pair);
COMMENT ON OPERATOR CLASS pair_ops USING btree IS 'a class';
COMMENT ON OPERATOR FAMILY pair_family USING btree IS 'a family';
CREATE OPERATOR FAMILY loose_family USING hash;
ALTER OPERATOR FAMILY loose_family USING hash ADD OPERATOR 1 #= (pair, pair);

-- Collations, conversions, access methods, languages, transforms
CREATE COLLATION german (PROVIDER = icu, LOCALE = 'de-u-co-phonebk', DETERMINISTIC = false);
CREATE COLLATION copied FROM "C";
COMMENT ON COLLATION german IS 'phone book';
CREATE CONVERSION my_conversion FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8;
COMMENT ON CONVERSION my_conversion IS 'a conversion';
CREATE ACCESS METHOD heap_too TYPE TABLE HANDLER heap_tableam_handler;
CREATE ACCESS METHOD btree_too TYPE INDEX HANDLER bthandler;
CREATE OPERATOR CLASS int4_too DEFAULT FOR TYPE integer USING btree_too AS
  OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 btint4cmp(integer, integer);
COMMENT ON ACCESS METHOD heap_too IS 'an access method';
CREATE FUNCTION own_call_handler() RETURNS language_handler LANGUAGE c AS '$libdir/plpgsql', 'plpgsql_call_handler';
CREATE FUNCTION own_validator(oid) RETURNS void LANGUAGE c AS '$libdir/plpgsql', 'plpgsql_validator';
CREATE TRUSTED LANGUAGE own_language HANDLER own_call_handler VALIDATOR own_validator;
COMMENT ON LANGUAGE own_language IS 'a language';
GRANT USAGE ON LANGUAGE own_language TO :"role_b";
CREATE FUNCTION int_from_sql(internal) RETURNS internal LANGUAGE internal IMMUTABLE AS 'int4recv';
CREATE TRANSFORM FOR integer LANGUAGE sql (FROM SQL WITH FUNCTION prsd_lextype(internal));
COMMENT ON TRANSFORM FOR integer LANGUAGE sql IS 'a transform';

-- Text search
CREATE TEXT SEARCH PARSER own_parser (START = prsd_start, GETTOKEN = prsd_nexttoken, END = prsd_end, LEXTYPES = prsd_lextype, HEADLINE = prsd_headline);
CREATE TEXT SEARCH TEMPLATE own_template (INIT = dsimple_init, LEXIZE = dsimple_lexize);
CREATE TEXT SEARCH DICTIONARY own_dictionary (TEMPLATE = own_template, STOPWORDS = 'english');
CREATE TEXT SEARCH CONFIGURATION own_configuration (PARSER = own_parser);
ALTER TEXT SEARCH CONFIGURATION own_configuration ADD MAPPING FOR asciiword, word WITH own_dictionary, simple;
COMMENT ON TEXT SEARCH PARSER own_parser IS 'a parser';
COMMENT ON TEXT SEARCH TEMPLATE own_template IS 'a template';
COMMENT ON TEXT SEARCH DICTIONARY own_dictionary IS 'a dictionary';
COMMENT ON TEXT SEARCH CONFIGURATION own_configuration IS 'a configuration';

-- Functions of all kinds; one whose body holds what looks like pg_dump's own comments
CREATE FUNCTION trap() RETURNS text LANGUAGE sql AS $trap$ SELECT '
--
-- Name: orders; Type: TABLE; Schema: public; Owner: nobody
--

\connect somewhere
\restrict abc
COPY public.orders (id) FROM stdin;
1
\.

--
-- PostgreSQL database dump complete
--
'::text; $trap$;
CREATE FUNCTION many(a integer, b text DEFAULT 'x;''y', VARIADIC c integer[] DEFAULT '{}', OUT d integer, OUT "E e" text)
  LANGUAGE plpgsql STABLE SECURITY DEFINER PARALLEL SAFE COST 7 LEAKPROOF SET work_mem = '1MB' SET search_path = public, pg_temp
  AS $$ begin d := a; "E e" := b; end $$;
COMMENT ON FUNCTION many(integer, text, integer[]) IS 'it''s $$ a function';
REVOKE ALL ON FUNCTION many(integer, text, integer[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION many(integer, text, integer[]) TO :"role_a", :"role_b";
CREATE FUNCTION atomic(x integer) RETURNS integer LANGUAGE sql
  BEGIN ATOMIC SELECT CASE WHEN x > 0 THEN 1 ELSE 2 END; SELECT x + 1; END;
CREATE FUNCTION sets() RETURNS SETOF pair LANGUAGE sql ROWS 5 AS $$ SELECT 1, 'x' $$;
CREATE FUNCTION as_table() RETURNS TABLE (a integer, b text) LANGUAGE sql AS $$ SELECT 1, 'x' $$;
CREATE PROCEDURE proc(INOUT x integer) LANGUAGE plpgsql AS $$ begin x := x + 1; commit; end $$;
CREATE PROCEDURE proc_atomic(x integer) LANGUAGE sql BEGIN ATOMIC SELECT x; END;
COMMENT ON PROCEDURE proc(integer) IS 'a procedure';
CREATE FUNCTION own_langauge_function() RETURNS integer LANGUAGE own_language AS $$ begin return 1; end $$;
CREATE AGGREGATE total(integer) (SFUNC = int4pl, STYPE = integer, INITCOND = '0', PARALLEL = safe, COMBINEFUNC = int4pl);
CREATE AGGREGATE own_rank(VARIADIC "any" ORDER BY VARIADIC "any") (SFUNC = ordered_set_transition_multi, STYPE = internal,
  FINALFUNC = rank_final, FINALFUNC_EXTRA, HYPOTHETICAL);
CREATE AGGREGATE moving(float8) (SFUNC = float8pl, STYPE = float8, MSFUNC = float8pl, MINVFUNC = float8mi, MSTYPE = float8, INITCOND = '0', MINITCOND = '0');
COMMENT ON AGGREGATE total(integer) IS 'an aggregate';

-- Sequences
CREATE SEQUENCE free_sequence AS smallint INCREMENT -3 MINVALUE -1000 MAXVALUE 100 START 50 CACHE 5 CYCLE;
SELECT nextval('free_sequence'), nextval('free_sequence');
CREATE SEQUENCE never_called START 42;
CREATE UNLOGGED SEQUENCE unlogged_sequence;
CREATE SEQUENCE "Odd ""Schema"."seq 'x' \ % /";
SELECT setval('"Odd ""Schema"."seq ''x'' \ % /"', 9223372036854775806);
COMMENT ON SEQUENCE free_sequence IS 'a sequence';
GRANT USAGE ON SEQUENCE free_sequence TO :"role_b";

-- Tables: columns of all kinds
CREATE TABLE customers (
  id serial PRIMARY KEY,
  big bigserial UNIQUE,
  name short_text NOT NULL DEFAULT 'no''body',
  mail ext.citext UNIQUE,
  feeling mood DEFAULT 'ok',
  feelings mood_list,
  place pair,
  places pair[],
  within span,
  withins spans,
  during tstzrange,
  attributes ext.hstore,
  tag label,
  rank positive,
  created timestamptz DEFAULT '2024-01-31 23:59:59.999999+00',
  CONSTRAINT checked CHECK (name <> '') NO INHERIT,
  CONSTRAINT checked_later CHECK (length(name) < 1000) NOT VALID
);
COMMENT ON TABLE customers IS 'customers; "all" of them';
COMMENT ON COLUMN customers.name IS 'it''s the name';
COMMENT ON CONSTRAINT checked ON customers IS 'a constraint';
ALTER TABLE customers ALTER COLUMN name SET STATISTICS 500, ALTER COLUMN name SET STORAGE EXTERNAL,
  ALTER COLUMN tag SET COMPRESSION pglz, ALTER COLUMN id SET (n_distinct = -1);
ALTER TABLE customers SET (fillfactor = 90, autovacuum_enabled = true, toast.autovacuum_vacuum_threshold = 100);
GRANT SELECT, INSERT (name, mail), UPDATE (name) ON customers TO :"role_a";
GRANT ALL ON customers TO :"role_b" WITH GRANT OPTION;
INSERT INTO customers (name, mail, feeling, feelings, place, places, within, withins, during, attributes, tag, rank)
  SELECT 'name ' || i, 'Mail' || i || '@example.org', 'happy', ARRAY['sad', 'it''s "odd"']::mood[], ROW(i, 'b' || i)::pair,
    ARRAY[ROW(i, NULL), ROW(NULL, 'x,"y"')]::pair[], span(i, i + 1.5), spans(span(i, i + 1), span(i + 3, NULL)),
    tstzrange('2024-01-01', NULL), ext.hstore('k' || i, NULL), ('tag' || i)::text::label, i
  FROM generate_series(1, 2000) i;
DELETE FROM customers WHERE id % 7 = 0;
UPDATE customers SET name = name || ' again' WHERE id % 11 = 0;

CREATE TABLE identities (
  always integer GENERATED ALWAYS AS IDENTITY (SEQUENCE NAME identities_own START 100 INCREMENT 10),
  often bigint GENERATED BY DEFAULT AS IDENTITY,
  width numeric NOT NULL DEFAULT 1,
  area numeric GENERATED ALWAYS AS (width * width) STORED,
  shout text GENERATED ALWAYS AS (upper('x' || (width)::text)) STORED
);
INSERT INTO identities (width) SELECT i FROM generate_series(1, 50) i;

CREATE TABLE "Odd ""Schema"."Table 'with' a \ back/slash % and
a line break, ünïcödé 表 .." (
  "Column ""one""" integer PRIMARY KEY, "column
two" text, "tab	three" text DEFAULT E'\t\\\n', "%s" text, "." text
);
ALTER TABLE "Odd ""Schema"."Table 'with' a \ back/slash % and
a line break, ünïcödé 表 .." OWNER TO :"role_a";
INSERT INTO "Odd ""Schema"."Table 'with' a \ back/slash % and
a line break, ünïcödé 表 .." VALUES (1, E'a\tb\nc\\d\r\b\f\v', '\N', '', '.'), (2, NULL, '', '\.', NULL), (3, '\.', 'x', '%', '表');
CREATE TABLE "." (a integer);
CREATE TABLE ".." (a integer);
CREATE TABLE "a/b" (a integer);
CREATE TABLE "A/B" (a integer);
CREATE TABLE "%2F" (a integer);
CREATE TABLE "select" ("from" integer PRIMARY KEY, "table" text);
INSERT INTO "a/b" VALUES (1);
INSERT INTO "%2F" VALUES (2), (1);
INSERT INTO "select" VALUES (2, 'b'), (1, 'a');

CREATE TABLE no_columns ();
INSERT INTO no_columns SELECT FROM generate_series(1, 5);
CREATE TABLE no_rows (a integer PRIMARY KEY, b text);
CREATE TABLE no_key (a integer, b text);
INSERT INTO no_key SELECT i % 3, repeat('x', i) FROM generate_series(1, 100) i;
INSERT INTO no_key VALUES (NULL, NULL), (NULL, ''), (1, 'NULL');
CREATE TABLE dropped_columns (a integer, b integer, c integer);
INSERT INTO dropped_columns VALUES (1, 2, 3);
ALTER TABLE dropped_columns DROP COLUMN b;
ALTER TABLE dropped_columns ADD COLUMN d text DEFAULT 'later';
CREATE TABLE all_dropped (a integer);
INSERT INTO all_dropped VALUES (1), (2);
ALTER TABLE all_dropped DROP COLUMN a;
CREATE UNLOGGED TABLE unlogged (a serial PRIMARY KEY, b text);
INSERT INTO unlogged (b) VALUES ('x'), ('y');
CREATE TABLE of_type OF pair (PRIMARY KEY (a), "b B" WITH OPTIONS DEFAULT 'typed');
INSERT INTO of_type VALUES (1, 'x');
CREATE TABLE other_heap (a integer) USING heap_too;
INSERT INTO other_heap VALUES (1);
CREATE TABLE clustered (a integer PRIMARY KEY, b integer);
CREATE INDEX clustered_b ON clustered (b);
ALTER TABLE clustered CLUSTER ON clustered_b;
CREATE TABLE replicated (a integer NOT NULL, b text);
CREATE UNIQUE INDEX replicated_a ON replicated (a);
ALTER TABLE replicated REPLICA IDENTITY USING INDEX replicated_a;
CREATE TABLE replicated_full (a integer);
ALTER TABLE replicated_full REPLICA IDENTITY FULL;

-- Values at the edges of every type
CREATE TABLE edges (
  id integer PRIMARY KEY, f4 float4, f8 float8, n numeric, i2 smallint, i4 integer, i8 bigint, t text, c char(5), v varchar(5),
  b bytea, bo boolean, d date, ti time, tz timetz, ts timestamp, tstz timestamptz, iv interval, u uuid, j json, jb jsonb, x xml,
  ip inet, net cidr, mac macaddr, mac8 macaddr8, bi bit(5), vb bit varying(9), p point, l line, ls lseg, bx box, pa path,
  po polygon, ci circle, m money, tv tsvector, tq tsquery, a1 integer[], a2 text[][], o oid, rc regclass, r int4range,
  mr int4multirange, num numrange, lsn pg_lsn, sn pg_snapshot, nm name, jp jsonpath, q "char", tid tid
);
INSERT INTO edges (id) VALUES (0);
INSERT INTO edges VALUES (1, 'NaN', 'NaN', 'NaN', -32768, -2147483648, -9223372036854775808, '', '', '', '', false,
  '-infinity', '00:00', '00:00+15:59', '-infinity', '-infinity', '-178000000 years', '00000000-0000-0000-0000-000000000000',
  '{"a":  1, "a": 2}', '{"a":  1, "a": 2}', '<a>&amp;</a>', '::', '::/0', '00:00:00:00:00:00', '00:00:00:00:00:00:00:00', B'00000', B'',
  '(NaN,-Infinity)', '{1,-1,0}', '[(0,0),(1,1)]', '(1,1),(0,0)', '[(0,0),(1,1)]', '((0,0),(1,1))', '<(0,0),0>', '-92233720368547758.08',
  '', '', '{}', '{}', 0, 0, 'empty', '{}', '(,)', '0/0', '1:1:', '', '$', '', '(0,0)');
INSERT INTO edges VALUES (2, '-Infinity', 'Infinity', '-Infinity', 32767, 2147483647, 9223372036854775807, E'tab\tnew\nline\\back\rcr', 'ab', 'abc',
  '\x00ff5c0a0d09', true, 'infinity', '24:00', '24:00-15:59', 'infinity', 'infinity', '-1 year -2 months +3 days -04:05:06.789',
  'ffffffff-ffff-ffff-ffff-ffffffffffff', 'null', 'null', '<?xml version="1.0"?><b/>', '255.255.255.255/8', '10.0.0.0/8', 'ff:ff:ff:ff:ff:ff',
  'ff:ff:ff:ff:ff:ff:ff:ff', B'11111', B'101010101', '(-0,1e-300)', '{0,1,-0.5}', '[(-1,2),(3,-4)]', '(3,4),(-1,-2)', '((0,0),(1,1),(2,0))',
  '((0,0),(1,1),(2,0))', '<(1,2),3.5>', '92233720368547758.07', '''it''''s'':1A,2B quoted:3', '''a'' & !(b | c:*A) <-> d', '{1,NULL,3}',
  '{{a,"b c"},{NULL,"NULL"},{"\"","\\"}}', 4294967295, 'pg_class', '[1,10)', '{[1,2),[5,9)}', '[0.1,NaN]', 'FFFFFFFF/FFFFFFFF', '10:20:10,14,15',
  'name', 'strict $.a[*] ? (@ > 1)', E'\\', '(4294967295,65535)');
INSERT INTO edges (id, f4, f8, n, t, a1, b, ts, tstz, d) VALUES (3, '-0', '-0', 1e131071, repeat('ü表\', 1000), '[-2:0]={1,2,3}',
  decode(repeat('00', 3000), 'hex'), '4714-11-24 00:00:00 BC', '294276-12-31 23:59:59.999999+00', '5874897-12-31'),
  (4, 1e-45, 4.9e-324, 1e-16383, E'\u0001\u001f\u007f', NULL, '\x', '2024-02-29 12:00', '2024-03-31 01:30:00+00', '0001-01-01 BC'),
  (5, 3.4028235e38, 1.7976931348623157e308, '-0.000', E'\U0010FFFF', '{}', '\x5c2e', '1999-12-31 23:59:59.999999', '2024-10-27 01:30:00+02', '2024-12-31');
CREATE TABLE large (id integer PRIMARY KEY, t text, b bytea);
INSERT INTO large SELECT i, repeat(md5(i::text) || E'\n\\.\n', 40000 * i), decode(repeat(md5(i::text), 40000 * i), 'hex') FROM generate_series(1, 2) i;

-- Foreign keys: circular, deferrable, to itself, of several columns, not valid, with actions
CREATE TABLE chicken (id integer PRIMARY KEY, egg integer NOT NULL);
CREATE TABLE egg (id integer PRIMARY KEY, chicken integer NOT NULL REFERENCES chicken DEFERRABLE INITIALLY DEFERRED);
ALTER TABLE chicken ADD CONSTRAINT egg_first FOREIGN KEY (egg) REFERENCES egg DEFERRABLE INITIALLY DEFERRED;
BEGIN;
INSERT INTO chicken SELECT i, i % 100 + 1 FROM generate_series(1, 100) i;
INSERT INTO egg SELECT i, 101 - i FROM generate_series(1, 100) i;
COMMIT;
CREATE TABLE tree (id integer PRIMARY KEY, parent integer REFERENCES tree ON DELETE CASCADE ON UPDATE SET NULL);
INSERT INTO tree VALUES (1, NULL), (2, 1), (3, 2), (4, 4);
CREATE TABLE two_keys (a integer, b text, c integer, PRIMARY KEY (a, b), UNIQUE (b, c) INCLUDE (a));
INSERT INTO two_keys SELECT i % 10, 'b' || i, i FROM generate_series(1, 300) i;
CREATE TABLE two_refs (x integer, y text, FOREIGN KEY (x, y) REFERENCES two_keys (a, b) MATCH FULL ON DELETE SET DEFAULT);
INSERT INTO two_refs VALUES (1, 'b1'), (NULL, NULL);
ALTER TABLE two_refs ADD CONSTRAINT not_valid FOREIGN KEY (x) REFERENCES tree NOT VALID;
CREATE TABLE unique_nulls (a integer, UNIQUE NULLS NOT DISTINCT (a));
CREATE TABLE excluded (room integer, during tsrange, EXCLUDE USING gist (room WITH =, during WITH &&) WHERE (room > 0) DEFERRABLE);
INSERT INTO excluded SELECT i, '[2024-01-01,2024-02-01)' FROM generate_series(1, 20) i;

-- Indexes of all kinds
CREATE INDEX by_expression ON customers (lower(name) COLLATE german DESC NULLS LAST, (length(name) + 1)) WHERE id > 10;
CREATE INDEX by_gin ON customers USING gin (name ext.gin_trgm_ops);
CREATE INDEX by_gist ON customers USING gist (within) WITH (fillfactor = 70);
CREATE INDEX by_brin ON customers USING brin (created) WITH (pages_per_range = 4);
CREATE INDEX by_hash ON customers USING hash (mail);
CREATE INDEX by_spgist ON edges USING spgist (p);
CREATE INDEX by_pair ON customers USING btree (place pair_ops) INCLUDE (id);
ALTER INDEX by_expression ALTER COLUMN 2 SET STATISTICS 77;
COMMENT ON INDEX by_gin IS 'an index';
CREATE STATISTICS some_statistics (dependencies, ndistinct, mcv) ON id, name FROM customers;
CREATE STATISTICS expression_statistics ON (lower(name)), (id % 10) FROM customers;
ALTER STATISTICS some_statistics SET STATISTICS 99;
COMMENT ON STATISTICS some_statistics IS 'statistics';

-- Partitions: range, list, hash, of hash by an enum, sub-partitions, default, detached columns order
CREATE TABLE measured (at date NOT NULL, region text NOT NULL, value integer DEFAULT 7, PRIMARY KEY (at, region)) PARTITION BY RANGE (at);
CREATE TABLE measured_2023 PARTITION OF measured FOR VALUES FROM (MINVALUE) TO ('2024-01-01');
CREATE TABLE measured_2024 PARTITION OF measured FOR VALUES FROM ('2024-01-01') TO ('2025-01-01') PARTITION BY LIST (region);
CREATE TABLE measured_2024_eu PARTITION OF measured_2024 FOR VALUES IN ('eu', 'it''s');
CREATE TABLE measured_2024_rest PARTITION OF measured_2024 (value DEFAULT 8) DEFAULT;
CREATE TABLE measured_default (region text NOT NULL, gone integer, value integer, at date NOT NULL);
ALTER TABLE measured_default DROP COLUMN gone;
ALTER TABLE measured ATTACH PARTITION measured_default DEFAULT;
CREATE INDEX measured_value ON measured (value);
CREATE INDEX measured_only ON ONLY measured (region);
COMMENT ON TABLE measured_2024 IS 'a partition with partitions';
INSERT INTO measured SELECT date '2023-06-01' + i, (ARRAY['eu', 'us', 'it''s'])[i % 3 + 1], i FROM generate_series(0, 1200) i;
CREATE TABLE hashed (id integer PRIMARY KEY, t text) PARTITION BY HASH (id);
CREATE TABLE hashed_0 PARTITION OF hashed FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE hashed_1 PARTITION OF hashed FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO hashed SELECT i, 'x' FROM generate_series(1, 100) i;
CREATE TABLE by_mood (m mood, n integer) PARTITION BY HASH (m);
CREATE TABLE by_mood_0 PARTITION OF by_mood FOR VALUES WITH (MODULUS 3, REMAINDER 0);
CREATE TABLE by_mood_1 PARTITION OF by_mood FOR VALUES WITH (MODULUS 3, REMAINDER 1);
CREATE TABLE by_mood_2 PARTITION OF by_mood FOR VALUES WITH (MODULUS 3, REMAINDER 2);
-- (its rows: see the tests; which partition they are in depends on the oids of the enum's values)
CREATE TABLE referring (at date, region text, FOREIGN KEY (at, region) REFERENCES measured) PARTITION BY LIST (region);
CREATE TABLE referring_eu PARTITION OF referring FOR VALUES IN ('eu');
CREATE TABLE measured_empty (x integer) PARTITION BY LIST (x);

-- Inheritance
CREATE TABLE base (id integer PRIMARY KEY, t text DEFAULT 'base', CONSTRAINT inherited CHECK (id > 0));
CREATE TABLE derived (extra text) INHERITS (base);
ALTER TABLE derived ALTER COLUMN t SET DEFAULT 'derived';
CREATE TABLE twice (more integer) INHERITS (derived, no_rows);
INSERT INTO base VALUES (1), (2);
INSERT INTO derived VALUES (10, 'd', 'e');
INSERT INTO twice (id, a, b, more) VALUES (20, 1, 'x', 3);

-- Views, rules, cycles between views and functions, materialized views that rest on each other
CREATE VIEW simple_view WITH (security_barrier) AS SELECT id, name FROM customers WHERE id > 5 WITH CASCADED CHECK OPTION;
ALTER VIEW simple_view ALTER COLUMN name SET DEFAULT 'by the view';
COMMENT ON VIEW simple_view IS 'a view';
COMMENT ON COLUMN simple_view.id IS 'of a view';
GRANT SELECT (id) ON simple_view TO :"role_c";
CREATE VIEW by_key AS SELECT id, name, count(*) AS n FROM customers GROUP BY id;
CREATE VIEW on_by_key AS SELECT * FROM by_key;
CREATE RECURSIVE VIEW numbers (n) AS VALUES (1) UNION ALL SELECT n + 1 FROM numbers WHERE n < 10;
CREATE VIEW cycle_view AS SELECT 1 AS a;
CREATE FUNCTION cycle_function() RETURNS SETOF cycle_view LANGUAGE sql AS $$ SELECT 1 $$;
CREATE OR REPLACE VIEW cycle_view AS SELECT a FROM cycle_function();
CREATE VIEW with_rules AS SELECT id, b FROM (SELECT a AS id, b FROM no_key) s;
CREATE RULE insert_rule AS ON INSERT TO with_rules DO INSTEAD INSERT INTO no_key VALUES (new.id, new.b);
CREATE RULE also_rule AS ON UPDATE TO no_rows DO ALSO (INSERT INTO no_key VALUES (1, 'a;b'); NOTIFY no_rows);
CREATE RULE where_rule AS ON DELETE TO no_rows WHERE old.a > 1 DO INSTEAD NOTHING;
ALTER TABLE no_rows DISABLE RULE also_rule;
COMMENT ON RULE insert_rule ON with_rules IS 'a rule';
CREATE MATERIALIZED VIEW first_view AS SELECT id, name FROM customers;
CREATE UNIQUE INDEX first_view_id ON first_view (id);
CREATE MATERIALIZED VIEW a_second_view AS SELECT count(*) AS n FROM first_view;
CREATE MATERIALIZED VIEW never_filled AS SELECT 1 AS one WITH NO DATA;
CREATE MATERIALIZED VIEW grouped AS SELECT id, name FROM customers GROUP BY id;
CREATE INDEX grouped_id ON grouped (id);
COMMENT ON MATERIALIZED VIEW first_view IS 'a materialized view';
REFRESH MATERIALIZED VIEW a_second_view;

-- Triggers and event triggers
CREATE FUNCTION a_trigger() RETURNS trigger LANGUAGE plpgsql AS $$ begin raise exception 'a trigger has fired'; end $$;
CREATE TRIGGER before_row BEFORE INSERT OR UPDATE OF name ON customers FOR EACH ROW WHEN (new.id > 0) EXECUTE FUNCTION a_trigger('x', 'it''s');
CREATE TRIGGER after_statement AFTER DELETE ON customers REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION a_trigger();
CREATE TRIGGER instead INSTEAD OF UPDATE ON simple_view FOR EACH ROW EXECUTE FUNCTION a_trigger();
CREATE CONSTRAINT TRIGGER constrained AFTER INSERT ON tree DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION a_trigger();
CREATE TRIGGER of_partitions BEFORE INSERT ON measured FOR EACH ROW EXECUTE FUNCTION a_trigger();
ALTER TABLE measured_2023 DISABLE TRIGGER of_partitions;
ALTER TABLE tree ENABLE ALWAYS TRIGGER constrained;
ALTER TABLE customers DISABLE TRIGGER after_statement;
COMMENT ON TRIGGER before_row ON customers IS 'a trigger';
CREATE FUNCTION an_event() RETURNS event_trigger LANGUAGE plpgsql AS $$ begin raise exception 'no % here', tg_tag; end $$;
CREATE FUNCTION quiet_event() RETURNS event_trigger LANGUAGE plpgsql AS $$ begin end $$;

-- Row security
CREATE TABLE secured (id integer PRIMARY KEY, owner text);
INSERT INTO secured VALUES (1, 'a'), (2, 'b');
ALTER TABLE secured ENABLE ROW LEVEL SECURITY;
ALTER TABLE secured FORCE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON secured AS RESTRICTIVE FOR UPDATE TO :"role_a" USING (owner = current_user) WITH CHECK (id > 0);
CREATE POLICY all_rows ON secured USING (true);
COMMENT ON POLICY own_rows ON secured IS 'a policy';

-- Privileges: default ones, by others than the owner, none at all
ALTER DEFAULT PRIVILEGES FOR ROLE :"role_a" IN SCHEMA public GRANT SELECT ON TABLES TO :"role_b";
ALTER DEFAULT PRIVILEGES FOR ROLE :"role_a" REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
ALTER DEFAULT PRIVILEGES FOR ROLE :"role_a" GRANT USAGE ON SEQUENCES TO :"role_c" WITH GRANT OPTION;
SET ROLE :"role_b";
GRANT SELECT ON public.customers TO :"role_c";
RESET ROLE;
REVOKE ALL ON no_rows FROM postgres;

-- Foreign data
CREATE FOREIGN DATA WRAPPER dummy OPTIONS (debug 'true');
CREATE SERVER elsewhere TYPE 'x' VERSION '1' FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host 'localhost', dbname 'it''s');
CREATE SERVER local_files FOREIGN DATA WRAPPER file_fdw;
CREATE USER MAPPING FOR :"role_a" SERVER elsewhere OPTIONS (user 'x', password 'y z');
CREATE USER MAPPING FOR PUBLIC SERVER elsewhere;
CREATE FOREIGN TABLE far (id integer OPTIONS (column_name 'ID'), t text NOT NULL) SERVER elsewhere OPTIONS (table_name 'a"b');
CREATE FOREIGN TABLE far_part PARTITION OF measured_empty FOR VALUES IN (1) SERVER elsewhere;
COMMENT ON FOREIGN TABLE far IS 'a foreign table';
COMMENT ON SERVER elsewhere IS 'a server';
COMMENT ON FOREIGN DATA WRAPPER dummy IS 'a wrapper';
GRANT USAGE ON FOREIGN SERVER elsewhere TO :"role_a";
GRANT USAGE ON FOREIGN DATA WRAPPER dummy TO :"role_a";

-- Publications and subscriptions
SET client_min_messages = error;
CREATE PUBLICATION everything FOR ALL TABLES WITH (publish = 'insert');
CREATE PUBLICATION chosen FOR TABLE customers (id, name) WHERE (id > 10), ONLY base WITH (publish_via_partition_root);
CREATE PUBLICATION of_schema FOR TABLES IN SCHEMA hidden;
COMMENT ON PUBLICATION chosen IS 'a publication';
CREATE SUBSCRIPTION off CONNECTION 'host=localhost dbname=nowhere password=secret' PUBLICATION a, "b C" WITH (connect = false, slot_name = NONE, binary = true);
COMMENT ON SUBSCRIPTION off IS 'a subscription';

-- Large objects: with holes, empty, long, owned by others, with privileges and comments
SELECT lo_from_bytea(50001, '\x00ff5c0a0d09');
SELECT lo_create(50002);
SELECT lo_from_bytea(50003, decode(repeat('0123456789abcdef', 50000), 'hex'));
SELECT lo_put(50003, 3000000, '\x01');
SELECT lo_from_bytea(50004, 'owned');
SELECT lo_from_bytea(50005, decode(repeat('00', 262144), 'hex'));
ALTER LARGE OBJECT 50004 OWNER TO :"role_a";
GRANT SELECT ON LARGE OBJECT 50004 TO PUBLIC;
GRANT SELECT, UPDATE ON LARGE OBJECT 50003 TO :"role_b" WITH GRANT OPTION;
REVOKE ALL ON LARGE OBJECT 50001 FROM postgres;
GRANT SELECT ON LARGE OBJECT 50001 TO postgres;
COMMENT ON LARGE OBJECT 50003 IS 'it''s a large \ object';
SET ROLE :"role_b";
GRANT SELECT ON LARGE OBJECT 50003 TO :"role_c";
RESET ROLE;
CREATE TABLE with_objects (id integer, o ext.lo, r oid);
INSERT INTO with_objects VALUES (1, 50001, 50003);

CREATE EVENT TRIGGER no_drops ON sql_drop WHEN TAG IN ('DROP TABLE', 'DROP SCHEMA') EXECUTE FUNCTION an_event();
CREATE EVENT TRIGGER no_tables ON ddl_command_start WHEN TAG IN ('CREATE TABLE', 'CREATE INDEX', 'ALTER TABLE') EXECUTE FUNCTION an_event();
CREATE EVENT TRIGGER sleeping ON ddl_command_end EXECUTE FUNCTION quiet_event();
ALTER EVENT TRIGGER sleeping DISABLE;
COMMENT ON EVENT TRIGGER no_drops IS 'an event trigger';
