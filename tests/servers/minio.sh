#!/bin/bash
# A throwaway MinIO on loopback, with a root user and password of its own and one empty bucket.
#
#   eval "$(tests/servers/minio.sh start)"   # MINIO_ENDPOINT MINIO_ACCESS_KEY MINIO_SECRET_KEY MINIO_BUCKET, VAULT_SERVER_DIR,
#                                            # and the AWS_ variables every S3 client reads
#   tests/servers/minio.sh stop "$VAULT_SERVER_DIR"
#
# VAULT_TEST_MINIO           a minio program to use instead of building one
# VAULT_TEST_MINIO_VERSION   the version to build (latest)
NAME=minio
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

MINIO=${VAULT_TEST_MINIO:-$CACHE/minio/minio}

have() { [ -x "$MINIO" ]; }

# The build lands beside its place and is moved there whole, so that a killed build is no install.
install() {
  command -v go >/dev/null || { echo "MinIO is built by Go, and there is no go on PATH: see https://go.dev/dl"; return 1; }
  local into=$CACHE/minio.building
  rm -rf "$into"
  mkdir -p "$into" "$CACHE/minio"
  cd "$into" # outside any Go module
  GOBIN=$into GOFLAGS="-trimpath ${GOFLAGS:-}" go install "github.com/minio/minio@${VAULT_TEST_MINIO_VERSION:-latest}"
  mv "$into/minio" "$MINIO"
  rm -rf "$into"
}

# A plain HTTP request by the shell itself: curl may be missing. In brackets, as a failing exec ends its shell.
answers() (
  exec 6<>"/dev/tcp/127.0.0.1/$PORT"
  printf 'GET /minio/health/ready HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n' >&6
  read -r -t 3 _ status _ <&6
  [ "$status" = 200 ]
)

# MINIO_CI_CD lets a data folder lie on the root file system, as it does in containers.
launch_minio() {
  MINIO_ROOT_USER=$ACCESS_KEY MINIO_ROOT_PASSWORD=$SECRET_KEY MINIO_BROWSER=off MINIO_UPDATE=off MINIO_CI_CD=1 \
    launch TERM root "$MINIO" server --quiet --certs-dir "$DIR/certs" \
    --address "127.0.0.1:$PORT" --console-address "127.0.0.1:$(free_port)" "$DIR/data"
}

start() {
  make_folder "$(id -un)"
  BUCKET=vault
  mkdir -p "$DIR/certs" "$DIR/data/$BUCKET" # a folder there before the start is a bucket
  if [ ! -f "$DIR/keys" ]; then (umask 077 && echo "$(random_hex 8) $(random_hex 20)" >"$DIR/keys"); fi
  read -r ACCESS_KEY SECRET_KEY <"$DIR/keys"
  launch_until answers launch_minio
  give MINIO_ENDPOINT "http://127.0.0.1:$PORT" MINIO_ACCESS_KEY "$ACCESS_KEY" MINIO_SECRET_KEY "$SECRET_KEY" \
    MINIO_BUCKET "$BUCKET" AWS_ENDPOINT_URL "http://127.0.0.1:$PORT" AWS_ACCESS_KEY_ID "$ACCESS_KEY" \
    AWS_SECRET_ACCESS_KEY "$SECRET_KEY" AWS_REGION us-east-1 VAULT_SERVER_DIR "$DIR" VAULT_SERVER_PID "$PID"
}

serve "$@"
