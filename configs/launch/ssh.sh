#!/usr/bin/env bash
# One process per host over plain ssh; every host sees the same working folder and run folder.
#
#   HOSTS="node1 node2 node3 node4" FOLDER=/shared/project configs/launch/ssh.sh configs/my.py --run-dir runs/my
#
# If one process dies, the others leave within the heartbeat, and the job starts again from its last checkpoint.
# Ctrl-C saves and stops all of them.
set -u
read -ra hosts <<< "${HOSTS:?names of the hosts, the first one coordinates}"
folder=${FOLDER:-$PWD}
port=${PORT:-29400}
restarts=${RESTARTS:-20}
jaxtune=${JAXTUNE:-.venv/bin/jaxtune}
restartable=$([ "${COMMAND:-train}" = train ] && echo --restartable) # COMMAND=sweep goes on in any case

stop() { for pid in "${pids[@]}"; do kill -INT "$pid" 2>/dev/null; done; stopping=1; }
stopping=0
trap stop INT TERM

for ((try = 0; try <= restarts; try++)); do
    pids=()
    for i in "${!hosts[@]}"; do
        printf -v arguments '%q ' "$@" # quoted for the shell at the other end
        # -tt passes Ctrl-C on, and ends the process when the connection breaks.
        ssh -tt -o ServerAliveInterval=15 "${hosts[$i]}" "cd $(printf %q "$folder") && exec env \
            JAXTUNE_COORDINATOR=${hosts[0]}:$((port + try)) JAXTUNE_PROCESSES=${#hosts[@]} JAXTUNE_PROCESS=$i \
            $jaxtune ${COMMAND:-train} $arguments $restartable" < /dev/null &
        pids+=($!)
    done
    code=0
    for pid in "${pids[@]}"; do
        wait "$pid"
        status=$?
        # A user's error (1) or a wrong option (2) is not worth another try, whatever the other processes say.
        if ((status == 1 || status == 2)); then code=$status; elif ((status && code == 0)); then code=$status; fi
    done
    if ((code == 0 || code == 1 || code == 2 || stopping)); then exit "$code"; fi
    echo "job ended with code $code; start $((try + 2)) in 10 s" >&2
    sleep 10
done
exit "$code"
