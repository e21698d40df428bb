#!/bin/bash
# A run of N processes on this machine: to try what a cluster will do.
#
#   launch/local.sh [--dry_run] N python -m emjax.main --config=configs/pretrain.py:smoke
#
# $PORT (default 12355) is where they meet. SIGTERM stops them all; the exit code is the first
# that is not 0. Several GPUs need none of this: one process takes them all.
set -u
if [ "${1-}" = --dry_run ]; then dry=1; shift; else dry=; fi
count=${1:?expected a number of processes}
shift
where=("--coordinator=localhost:${PORT:-12355}" "--processes=$count")

started=()
trap 'kill -TERM "${started[@]}"' TERM INT
for i in $(seq 0 $((count - 1))); do
    if [ "$dry" ]; then
        echo "$* ${where[*]} --process=$i &"
    else
        "$@" "${where[@]}" "--process=$i" &
        started+=($!)
    fi
done
code=0
for process in ${started[@]+"${started[@]}"}; do
    one=0
    wait "$process" || one=$?
    while kill -0 "$process" 2>/dev/null; do # the signal ended the wait, not the process
        one=0
        wait "$process" || one=$?
    done
    if [ "$code" = 0 ]; then code=$one; fi
done
exit "$code"
