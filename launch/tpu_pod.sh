#!/bin/bash
# A run on a TPU pod slice: a queued resource, one container a host, deleted when the run is done.
# A spot slice that is taken away is asked for again, and the run goes on.
#
#   NAME=em ZONE=europe-west4-b TYPE=v5litepod-256 IMAGE=REGISTRY/emjax:tpu \
#   MOUNT='sudo mount -o rw 10.0.0.2:/share /mnt' \
#       launch/tpu_pod.sh [--dry_run] python -m emjax.main --config=... --workdir=/mnt/run
#
# MOUNT is run on each host and brings the folder /mnt, the same on all, for data and workdir.
# SPOT= (empty) takes no spot capacity; RUNTIME is the software version of the TPU's VMs.
set -u
if [ "${1-}" = --dry_run ]; then dry=1; shift; else dry=; fi
: "${NAME:?}" "${ZONE:?}" "${TYPE:?}" "${IMAGE:?}" "${MOUNT:?}"
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite} SPOT=${SPOT---spot}
run() { if [ "$dry" ]; then printf '%q ' "$@"; echo; else "$@"; fi; }
queued() { run gcloud compute tpus queued-resources "$1" "$NAME" "--zone=$ZONE" "${@:2}"; }
state() { if [ "$dry" ]; then echo ACTIVE; else queued describe '--format=value(state.state)'; fi; }
container="sudo docker run --rm --privileged --net=host -v /mnt:/mnt $IMAGE $(printf '%q ' "$@")"

while true; do
    # shellcheck disable=SC2086  # SPOT may be no word at all
    queued create "--node-id=$NAME" "--accelerator-type=$TYPE" "--runtime-version=$RUNTIME" $SPOT ||
        exit
    until [ "$(state)" = ACTIVE ]; do
        case $(state) in FAILED | SUSPENDED) break ;; esac
        sleep 60
    done
    run gcloud compute tpus tpu-vm ssh "$NAME" "--zone=$ZONE" --worker=all \
        "--command=$MOUNT && $container"
    code=$?
    now=$(state)
    queued delete --force --quiet
    # ACTIVE: the command itself has failed. FAILED: no slice was made, and none would be again.
    if [ "$code" = 0 ] || [ "$now" = ACTIVE ] || [ "$now" = FAILED ]; then exit "$code"; fi
done
