#!/bin/sh
# What a container is: `serve`, `head` or `worker`, with more options behind it; anything else is a command of fleetune.
set -eu

# Print the name for a new admin's token; nothing if the store has a valid one. A name cannot be used a second time.
# `fleetune tokens list` fails if there is no store yet, and then nothing is read.
name_of_admin() {
    fleetune tokens list --store "$1" --json 2>/dev/null | python -c '
import json, sys, time
tokens, now_s = json.loads(sys.stdin.read() or "[]"), time.time()
admins = [one for one in tokens if one["role"] == "admin" and one["revoked_s"] is None]
if not any(one["expires_s"] is None or one["expires_s"] > now_s for one in admins):
    print(f"admin-{now_s:.0f}" if any(one["name"] == "admin" for one in tokens) else "admin")
'
}

# An admin's token, made once and kept beside the store: on any address but loopback the server asks for one.
make_admin_token() (
    file="$FLEETUNE_HOME/admin-token"
    store="${FLEETUNE_STORE:-$FLEETUNE_HOME/queue.db}"
    [ ! -s "$file" ] || return 0
    umask 077
    if [ ! -s "$file.new" ]; then # else an earlier start was killed before the rename
        name="$(name_of_admin "$store")"
        if [ -z "$name" ]; then
            echo "entrypoint: the store has an admin's token. If it is lost, add one: fleetune tokens add NAME --role admin --store STORE" >&2
            return 0
        fi
        fleetune tokens add "$name" --role admin --store "$store" > "$file.new"
    fi
    mv "$file.new" "$file"
    echo "entrypoint: the admin's token is in $file" >&2
)

role="${1:-serve}"
[ "$#" -eq 0 ] || shift
case "$role" in
    serve)
        make_admin_token
        exec fleetune serve --host 0.0.0.0 ${FLEETUNE_STORE:+--store "$FLEETUNE_STORE"} "$@"
        ;;
    head)
        exec ray start --head --block --port 6379 --dashboard-host 0.0.0.0 "$@"
        ;;
    worker)
        exec ray start --block --address "${RAY_HEAD:?set RAY_HEAD to the address of the head, as head:6379}" "$@"
        ;;
    *)
        exec fleetune "$role" "$@"
        ;;
esac
