#!/bin/sh
# What a container is: `serve`, `head` or `worker`, with more options behind it; anything else is a command of fleetune.
set -eu

# An admin's token, made once and kept beside the store: on any address but loopback the server asks for one.
make_admin_token() {
    file="$FLEETUNE_HOME/admin-token"
    [ -s "$file" ] && return
    umask 077
    fleetune tokens add admin --role admin --store "${FLEETUNE_STORE:-$FLEETUNE_HOME/queue.db}" > "$file.new"
    mv "$file.new" "$file"
    echo "entrypoint: the admin's token is in $file" >&2
}

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
