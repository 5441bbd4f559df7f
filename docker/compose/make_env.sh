#!/bin/sh
# Prints what docker-compose.yml has no default for: passwords and keys, made here, of letters and digits.
#
#   (umask 077; sh docker/compose/make_env.sh >> .env) && chmod 600 .env
#
# Run it once. To change one of them later: docs/runbooks/secret-rotation.md.
set -eu
random() { head -c "$1" /dev/urandom | od -An -tx1 | tr -d ' \n'; }
key=$(random 24)
# The pair of keys that releases are signed and verified with (docs/signing.md): the one line of base64 in each PEM.
line() { sed -n 2p | tr '+/' '-_'; }
if ! pem=$(openssl genpkey -algorithm ed25519); then
  echo "expected openssl (1.1.1 or newer), found none. Next: install it." >&2
  exit 2
fi
cat <<END
# Made by docker/compose/make_env.sh, $(date -u +%Y-%m-%dT%H:%M:%SZ)
POSTGRES_PASSWORD=$(random 16)
AIRFLOW_DB_PASSWORD=$(random 16)
MLFLOW_DB_PASSWORD=$(random 16)
STAGES_DB_PASSWORD=$(random 16)
S3_ACCESS_KEY=$(random 10 | tr a-f A-F)
S3_SECRET_KEY=$(random 20)
AIRFLOW_ADMIN_PASSWORD=$(random 12)
AIRFLOW_JWT_SECRET=$(random 40)
AIRFLOW_FERNET_KEY=$(head -c 32 /dev/urandom | base64 | tr '+/' '-_')
ASSISTANT_KEY=$key
ASSISTANT_KEY_SHA256=$(printf %s "$key" | sha256sum | cut -d ' ' -f 1)
MILLRACE_SIGNING_KEY=$(printf '%s\n' "$pem" | line)
MILLRACE_VERIFY_KEY=$(printf '%s\n' "$pem" | openssl pkey -pubout | line)
MILLRACE_SCHEDULE_START=$(date -u +%Y-%m-%dT%H:%M:%S+00:00)
END
