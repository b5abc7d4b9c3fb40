# What the server scripts share: install once, start detached, wait, stop by pid. Sourced, never run.
#
# A server lives in a folder of its own:
#   DIR/state        "PID START SIGNAL": the process, its start time in clock ticks since boot, and how it likes to end
#   DIR/ours         present if this script made the folder; then `stop` removes it
#   DIR/server.log   everything the server prints
# The start time tells our process from another one that was given the same pid later.

set -euo pipefail
umask 022

CACHE=${VAULT_TEST_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/vault-tests}
SELF=$(cd "$(dirname "$0")" && pwd -P)/$(basename "$0")
START_SECONDS_MAX=${VAULT_TEST_START_SECONDS:-60}
INSTALL_SECONDS_MAX=${VAULT_TEST_INSTALL_SECONDS:-1200}

say() { printf '%s: %s\n' "$NAME" "$*" >&2; }
fail() { say "error: $*"; exit 1; }

# ---- installing ----------------------------------------------------------------------------------------------

# ensure CHECK INSTALL: runs INSTALL unless CHECK holds. Callers side by side wait for one of them to do it.
ensure() {
  local check=$1 install=$2 began=$SECONDS status=0
  if $check; then return 0; fi
  mkdir -p "$CACHE"
  exec 9>"$CACHE/$NAME.lock"
  flock -w "$INSTALL_SECONDS_MAX" 9 || fail "another install has held $CACHE/$NAME.lock for $INSTALL_SECONDS_MAX s"
  if ! $check; then
    say "not there yet, installing (log: $CACHE/$NAME.log)"
    # A shell of its own: inside `f || ...` errexit is off, and half an install would pass for a whole one.
    set +e
    (set -e; $install) >"$CACHE/$NAME.log" 2>&1 9>&-
    status=$?
    set -e
    if [ $status -ne 0 ]; then tail -n 25 "$CACHE/$NAME.log" >&2; fail "install failed"; fi
    $check || fail "installed, and still not usable; see $CACHE/$NAME.log"
    say "installed in $((SECONDS - began)) s"
  fi
  exec 9>&-
}

# Debian packages, with the package lists fetched only when they turn out to be missing or stale.
apt_install() {
  command -v apt-get >/dev/null || { echo "no apt-get here: install $* by hand"; return 1; }
  local sudo=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "neither root nor sudo: install $* by hand"; return 1; }
    sudo=(sudo)
  fi
  # RUNLEVEL=1 keeps the package from starting a service of the system's own. One apt at a time: it has but one lock.
  local apt=(env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
    apt-get -q -y -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3)
  (
    flock -w "$INSTALL_SECONDS_MAX" 7
    ${sudo[@]+"${sudo[@]}"} "${apt[@]}" install --no-install-recommends "$@" && exit 0
    ${sudo[@]+"${sudo[@]}"} "${apt[@]}" update
    ${sudo[@]+"${sudo[@]}"} "${apt[@]}" install --no-install-recommends "$@"
  ) 7>"$CACHE/apt.lock"
}

# ---- processes -----------------------------------------------------------------------------------------------

# started_at PID: its start time, or nothing if there is no such process. The command name, which may hold spaces
# and brackets, is cut off first.
started_at() {
  local line
  { read -r line <"/proc/$1/stat"; } 2>/dev/null || return 0
  line=${line##*) }
  set -- $line
  if [ "$1" != Z ]; then printf '%s' "${20}"; fi
}

# running PID START: is it still that process?
running() { [ -n "$2" ] && [ "$(started_at "$1")" = "$2" ]; }

port_taken() { (exec 5<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# A port nobody answers on, below the range the kernel hands out for outgoing connections.
free_port() {
  local port
  for _ in {1..200}; do
    port=$((20000 + (RANDOM * 32768 + RANDOM) % 12000))
    if ! port_taken "$port"; then echo "$port"; return 0; fi
  done
  fail "no free port found between 20000 and 32000"
}

random_hex() { od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'; }

# as_user USER COMMAND...: as that user if we are root, else as ourselves.
as_user() {
  local user=$1
  shift
  if [ "$(id -u)" -eq 0 ] && [ "$user" != root ]; then
    setpriv --reuid="$user" --regid="$(id -g "$user")" --init-groups -- "$@"
  else
    "$@"
  fi
}

# make_folder USER: sets DIR. A folder given by the caller is used as it is; else a new one under TMPDIR, or under
# /tmp when USER cannot enter TMPDIR.
make_folder() {
  local user=$1 parent
  if [ -n "$DIR" ]; then
    mkdir -p "$DIR"
    DIR=$(cd "$DIR" && pwd -P)
  else
    for parent in "${TMPDIR:-/tmp}" /tmp; do
      DIR=$(mktemp -d "$parent/vault-$NAME-XXXXXX")
      chmod 711 "$DIR"
      touch "$DIR/ours"
      if as_user "$user" test -x "$DIR"; then break; fi
      rm -rf "$DIR"
    done
  fi
  as_user "$user" test -x "$DIR" || fail "user $user cannot enter $DIR; give a folder whose parents are open, such as one under /tmp"
  if [ -f "$DIR/state" ]; then
    local pid start
    read -r pid start _ <"$DIR/state"
    if running "$pid" "$start"; then fail "pid $pid already serves $DIR; stop it with: $0 stop $DIR"; fi
    rm -f "$DIR/state"
  fi
}

# launch SIGNAL USER COMMAND...: starts it detached from our terminal, pipes and locks.
launch() {
  local signal=$1 user=$2 start
  shift 2
  local as=()
  if [ "$(id -u)" -eq 0 ] && [ "$user" != root ]; then
    as=(setpriv "--reuid=$user" "--regid=$(id -g "$user")" --init-groups --)
  fi
  setsid ${as[@]+"${as[@]}"} "$@" </dev/null >>"$DIR/server.log" 2>&1 &
  PID=$!
  start=$(started_at "$PID")
  echo "$PID ${start:-0} $signal" >"$DIR/state"
}

# launch_until ANSWERS LAUNCH: LAUNCH starts the server on $PORT, ANSWERS says whether it is up. Another process may
# take the port between our look and the server's bind; the server then dies, and the next port is tried.
launch_until() {
  local answers=$1 launch=$2 pid start deadline try
  for try in 1 2 3 4 5; do
    PORT=$(free_port)
    $launch
    read -r pid start _ <"$DIR/state"
    deadline=$((SECONDS + START_SECONDS_MAX))
    while running "$pid" "$start"; do
      if $answers >/dev/null 2>&1 && running "$pid" "$start"; then return 0; fi
      if [ $SECONDS -ge $deadline ]; then
        tail -n 25 "$DIR/server.log" >&2
        fail "no answer on port $PORT within $START_SECONDS_MAX s"
      fi
      sleep 0.1
    done
    say "died on port $PORT (try $try)"
    sleep 0.5
  done
  tail -n 25 "$DIR/server.log" >&2
  fail "does not start"
}

# stop_server [SIGNAL]: ends the server of $DIR; after 30 s by SIGKILL. Does nothing if it is gone already.
stop_server() {
  local pid start signal deadline
  if [ -n "$DIR" ] && [ -f "$DIR/state" ]; then
    read -r pid start signal <"$DIR/state"
    if running "$pid" "$start"; then kill -"${1:-$signal}" "$pid" 2>/dev/null || true; fi
    deadline=$((SECONDS + 30))
    while running "$pid" "$start"; do
      if [ $SECONDS -ge $deadline ]; then
        say "pid $pid does not react to $signal, killing it"
        kill -KILL "$pid" 2>/dev/null || true
        deadline=$((SECONDS + 10))
      fi
      sleep 0.05
    done
    rm -f "$DIR/state"
  fi
}

remove_folder() { if [ -n "$DIR" ] && [ -f "$DIR/ours" ]; then rm -rf "$DIR"; fi; }

# Stops the server once process OWNER is gone, however it ended.
watch_owner() {
  local owner=$1 owner_start=$2 pid start
  read -r pid start _ <"$DIR/state"
  while running "$owner" "$owner_start" && running "$pid" "$start"; do sleep 1; done
  if ! running "$owner" "$owner_start"; then
    stop_server
    remove_folder
  fi
}

# give K V...: prints `export K=V` lines, quoted for eval.
give() {
  while [ $# -gt 0 ]; do
    printf 'export %s=%q\n' "$1" "$2"
    shift 2
  done
}

# ---- the command line ----------------------------------------------------------------------------------------

usage() {
  cat <<U
usage: $0 start [--owner PID] [DIR]   start (installing it if missing), wait until it answers, print \`export K=V\` lines
       $0 stop DIR                    stop it, and remove DIR if \`start\` made it
       $0 kill DIR                    the same by SIGKILL, as a crash; DIR stays, \`start DIR\` brings it up again
       $0 --install                   install only
With --owner the server stops by itself soon after process PID has ended.
U
}

# serve "$@": the script defines have, install and start (which sets PID and calls give).
serve() {
  local owner='' owner_start=''
  DIR=
  case ${1:-} in
    --install) ensure have install ;;
    start)
      shift
      if [ "${1:-}" = --owner ]; then
        owner=${2:?--owner needs a pid}
        owner_start=$(started_at "$owner")
        if [ -z "$owner_start" ]; then fail "no process $owner"; fi
        shift 2
      fi
      DIR=${1:-}
      ensure have install
      trap 'stop_server; remove_folder' EXIT # a start that fails leaves nothing behind
      start
      trap - EXIT
      if [ -n "$owner" ]; then
        setsid "$SELF" watch "$DIR" "$owner" "$owner_start" </dev/null >/dev/null 2>&1 &
      fi
      ;;
    stop) DIR=${2:?stop needs the folder}; stop_server; remove_folder ;;
    kill) DIR=${2:?kill needs the folder}; stop_server KILL ;;
    watch) DIR=$2; watch_owner "$3" "$4" ;;
    -h | --help) usage ;;
    *) usage >&2; exit 2 ;;
  esac
}
