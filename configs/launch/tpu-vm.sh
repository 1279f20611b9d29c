#!/usr/bin/env bash
# A Cloud TPU slice (for instance v5p-128: 64 chips, 16 hosts) through gcloud; the TPU's metadata join the hosts.
#
#   TPU=my-slice ZONE=us-east5-a TYPE=v5p-128 configs/launch/tpu-vm.sh configs/my.py --run-dir gs://bucket/runs/my
#
# The slice is made if it is not there, and made again after a spot preemption; jaxtune goes on from its last checkpoint.
# The job is detached: a laptop that sleeps or loses its connection stops nothing, and the same command watches it again.
# Every host logs to jaxtune/logs/job.log in its home:
#   gcloud compute tpus tpu-vm ssh my-slice --zone us-east5-a --worker=0 --command 'tail -f jaxtune/logs/job.log'
#
# A sweep of runs, each over all chips, or with --stacked --mesh.trial side by side:
#   COMMAND=sweep ... configs/launch/tpu-vm.sh configs/my.py --sweep-dir gs://bucket/sweeps/my --grid optim.peak_lr=1e-5,3e-5
#
# Variables: COMMAND (train), RUNTIME (v2-alpha-tpuv5), SPOT (1; empty for a slice on demand), ACCOUNT (service account that may write the
# bucket), EXTRAS (tpu,gs,hub), RESTARTS (20), PAUSE (30 seconds between two looks). Without TYPE nothing is created.
#
# The run folder is in a bucket, so nothing is lost with the slice; or on a disk that all hosts mount, such as Filestore.
# A bucket mounted through gcsfuse is no such disk: folders cannot be renamed there by default.
set -u
tpu=${TPU:?name of the slice}
zone=${ZONE:?its zone}
pause=${PAUSE:-30}
restartable=$([ "${COMMAND:-train}" = train ] && echo --restartable) # a sweep goes on in any case
source=${TMPDIR:-/tmp}/jaxtune-source.tar.gz

on() { # on WORKERS COMMAND
    gcloud compute tpus tpu-vm ssh "$tpu" --zone "$zone" --worker="$1" --command "$2"
}

state() { gcloud compute tpus tpu-vm describe "$tpu" --zone "$zone" --format='value(state)' 2> /dev/null; }

create() {
    echo "creating $tpu (${TYPE:?the slice is not there, and TYPE names no accelerator to create, e.g. v5p-128})" >&2
    gcloud compute tpus queued-resources delete "$tpu" --zone "$zone" --force --quiet 2> /dev/null
    gcloud compute tpus queued-resources create "$tpu" --node-id "$tpu" --zone "$zone" --accelerator-type "$TYPE" \
        --runtime-version "${RUNTIME:-v2-alpha-tpuv5}" ${SPOT-"--spot"} ${ACCOUNT:+--service-account "$ACCOUNT"} || return 1
    until [ "$(state)" = READY ]; do # a request that cannot be served stays in the queue; one that failed is made again
        sleep "$pause"
        case $(gcloud compute tpus queued-resources describe "$tpu" --zone "$zone" --format='value(state.state)') in
            FAILED | SUSPENDED) return 1 ;;
        esac
    done
}

install() { # the committed files, without .git, runs and environments; the images' own Python is older than 3.11
    git archive --format=tar.gz -o "$source" HEAD || return 1
    gcloud compute tpus tpu-vm scp "$source" "$tpu": --zone "$zone" --worker=all || return 1
    on all "mkdir -p jaxtune && tar xzf jaxtune-source.tar.gz -C jaxtune && cd jaxtune && pip3 install --quiet --user uv &&
        python3 -m uv venv --allow-existing --python 3.11 .venv &&
        python3 -m uv pip install --quiet -c constraints.txt -e '.[${EXTRAS:-tpu,gs,hub}]'"
}

start() { # detached; its exit code is left in logs/exit. Processes of a job that lost its way hold the chips: end them
    local job
    printf -v job '%q ' .venv/bin/jaxtune "${COMMAND:-train}" "$@" ${restartable:+"$restartable"}
    printf -v job '%q' "$job > logs/job.log 2>&1; echo \$? > logs/exit"
    on all "cd jaxtune && mkdir -p logs && { [ ! -f logs/pid ] || kill -KILL -- -\$(cat logs/pid) 2> /dev/null; true; } &&
        rm -f logs/exit && (setsid nohup bash -c $job < /dev/null > /dev/null 2>&1 & echo \$! > logs/pid)"
}

watch() { # the exit code of the first host's process; 76 where the slice is gone
    local code
    while true; do
        if code=$(on 0 'cat jaxtune/logs/exit 2> /dev/null || echo running'); then
            [ "$code" = running ] || return "$code"
        elif [ "$(state)" != READY ]; then
            return 76
        fi
        sleep "$pause"
    done
}

begun=$([ "$(state)" = READY ] && on 0 'ls jaxtune/logs/pid > /dev/null 2>&1 && ! ls jaxtune/logs/exit > /dev/null 2>&1 && echo yes')
for ((try = 0; try <= ${RESTARTS:-20}; try++)); do
    code=76
    if [ "$begun" = yes ]; then
        begun=no
        watch
        code=$?
    elif { [ "$(state)" = READY ] || create; } && install && start "$@"; then
        watch
        code=$?
    fi
    case $code in 0 | 1 | 2) exit "$code" ;; esac # finished, or an error that will not go away by itself
    echo "job ended with code $code; start $((try + 2)) in $pause s" >&2
    sleep "$pause"
done
exit "$code"
