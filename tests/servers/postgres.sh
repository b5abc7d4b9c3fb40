#!/bin/bash
# A throwaway PostgreSQL: UTF8, C.UTF-8, password (scram) over TCP on loopback, superuser postgres.
#
#   eval "$(tests/servers/postgres.sh start)"       # PGHOST PGPORT PGUSER PGPASSWORD, VAULT_SERVER_DIR
#   tests/servers/postgres.sh stop "$VAULT_SERVER_DIR"
#
# VAULT_TEST_PG_ARGS   more arguments for the server, such as "-c max_prepared_transactions=10"
# VAULT_TEST_PG_BIN    the folder of initdb and postgres; without it version 15, else the newest there is
NAME=postgres
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Debian keeps the server programs out of PATH, one folder a version.
find_bin() {
  local bin others
  others=$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -rV)
  for bin in "${VAULT_TEST_PG_BIN:-}" /usr/lib/postgresql/15/bin $others "$(dirname "$(command -v initdb || true)")"; do
    if [ -x "$bin/initdb" ] && [ -x "$bin/postgres" ] && [ -x "$bin/psql" ]; then BIN=$bin; return 0; fi
  done
  return 1
}

have() { find_bin && command -v pg_dump >/dev/null; }
install() { apt_install postgresql postgresql-client; }

answers() {
  PGPASSWORD=$PASSWORD PGCONNECT_TIMEOUT=3 "$BIN/psql" -XqAt -h 127.0.0.1 -p "$PORT" -U postgres -d postgres -c 'select 1'
}

launch_postgres() {
  launch INT "$OS_USER" "$BIN/postgres" -D "$DIR/data" -p "$PORT" ${VAULT_TEST_PG_ARGS:-}
}

# After `kill` the dead server stays a zombie until its parent looks, and PostgreSQL takes it for one that runs.
after_crash() {
  local old
  if [ ! -f "$DIR/data/postmaster.pid" ]; then return 0; fi
  read -r old <"$DIR/data/postmaster.pid"
  for _ in {1..100}; do
    if [ ! -d "/proc/$old" ] || [ -n "$(started_at "$old")" ]; then return 0; fi
    sleep 0.1
  done
  rm -f "$DIR/data/postmaster.pid"
}

start() {
  find_bin
  # PostgreSQL refuses to run as root.
  OS_USER=$(id -un)
  if [ "$OS_USER" = root ]; then OS_USER=postgres; fi
  make_folder "$OS_USER"
  if [ ! -f "$DIR/data/PG_VERSION" ]; then
    rm -rf "$DIR/data"
    mkdir -m 700 "$DIR/data"
    (umask 077 && random_hex 16 >"$DIR/password")
    if [ "$OS_USER" != "$(id -un)" ]; then chown "$OS_USER": "$DIR/data" "$DIR/password"; fi
    (cd "$DIR/data" && as_user "$OS_USER" "$BIN/initdb" -D "$DIR/data" -U postgres -E UTF8 --locale=C.UTF-8 --no-sync \
      --auth-local=reject --auth-host=scram-sha-256 --pwfile="$DIR/password") >>"$DIR/server.log" 2>&1 ||
      { tail -n 25 "$DIR/server.log" >&2; fail "initdb failed"; }
    # fsync off: the data is thrown away. No unix socket: its path would have to be short and writable.
    cat >>"$DIR/data/postgresql.conf" <<C
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
fsync = off
shared_buffers = 128MB
max_wal_size = 2GB
max_connections = 200
C
  fi
  after_crash
  PASSWORD=$(cat "$DIR/password")
  cd "$DIR/data"
  launch_until answers launch_postgres
  cd /
  give PGHOST 127.0.0.1 PGPORT "$PORT" PGUSER postgres PGPASSWORD "$PASSWORD" \
    VAULT_SERVER_DIR "$DIR" VAULT_SERVER_PID "$PID"
}

serve "$@"
