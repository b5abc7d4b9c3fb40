#!/bin/bash
# Prints the path of a Python that has what format-spec/reader.py imports, in a virtual environment made on first use.
#
#   "$(tests/servers/python.sh)" format-spec/reader.py --help
NAME=python
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

PACKAGES=(blake3 zstandard argon2-cffi pynacl)
VENV=$CACHE/python

# The stamp is written last and names the packages, so that half an environment or an old list is made anew.
have() { [ "$(cat "$VENV/packages" 2>/dev/null)" = "${PACKAGES[*]}" ] && "$VENV/bin/python" -c '' 2>/dev/null; }

install() {
  rm -rf "$VENV"
  python3 -m venv "$VENV" || { apt_install python3-venv && rm -rf "$VENV" && python3 -m venv "$VENV"; }
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "${PACKAGES[@]}"
  echo "${PACKAGES[*]}" >"$VENV/packages"
}

case ${1:-} in
  '' | --install) ensure have install ;;
  *) echo "usage: $0 [--install]   print the path of a Python with ${PACKAGES[*]}" >&2; exit 2 ;;
esac
if [ $# -eq 0 ]; then echo "$VENV/bin/python"; fi
