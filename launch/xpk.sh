#!/bin/bash
# A run on a GKE cluster that XPK made (pip install xpk; xpk cluster create): restarted up to 50
# times, as when spot nodes are taken away. It goes on from its last checkpoint each time.
#
#   NAME=em CLUSTER=tpus TYPE=v5litepod-256 IMAGE=REGISTRY/emjax:tpu \
#       launch/xpk.sh [--dry_run] python -m emjax.main --config=... --workdir=/mnt/run
#
# /mnt comes from `xpk storage attach`; SLICES=N takes several slices.
set -u
if [ "${1-}" = --dry_run ]; then dry=1; shift; else dry=; fi
: "${NAME:?}" "${CLUSTER:?}" "${TYPE:?}" "${IMAGE:?}"
run() { if [ "$dry" ]; then printf '%q ' "$@"; echo; else exec "$@"; fi; }
run xpk workload create "--workload=$NAME" "--cluster=$CLUSTER" "--tpu-type=$TYPE" \
    "--num-slices=${SLICES:-1}" "--docker-image=$IMAGE" --max-restarts=50 "--command=$(printf '%q ' "$@")"
