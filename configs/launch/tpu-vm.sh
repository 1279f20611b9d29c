#!/usr/bin/env bash
# A Cloud TPU slice (for instance v5p-128: 64 chips, 16 hosts) through gcloud; the TPU's metadata join the hosts.
#
#   TPU=my-slice ZONE=us-east5-a configs/launch/tpu-vm.sh configs/my.py --run-dir /mnt/runs/my \
#       --checkpoint.directory gs://bucket/my
#
# The run folder is on a disk that all hosts mount (Filestore, or a bucket through gcsfuse).
# Once, to have a slice and the project on every host of it:
#   gcloud compute tpus queued-resources create my-slice --node-id my-slice --zone us-east5-a \
#       --accelerator-type v5p-128 --runtime-version v2-alpha-tpuv5 --spot
#   gcloud compute tpus tpu-vm scp --recurse --worker=all --zone us-east5-a . my-slice:jaxtune
#   gcloud compute tpus tpu-vm ssh my-slice --zone us-east5-a --worker=all --command \
#       'cd jaxtune && python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e ".[tpu]"'
set -u
printf -v arguments '%q ' "$@"
for ((try = 0; try <= ${RESTARTS:-20}; try++)); do
    gcloud compute tpus tpu-vm ssh "${TPU:?name of the slice}" --zone "${ZONE:?its zone}" --worker=all \
        --command "cd ${FOLDER:-jaxtune} && exec .venv/bin/jaxtune train $arguments --restartable"
    code=$?
    if ((code == 0)); then exit 0; fi # gcloud does not pass on which error it was
    echo "job ended with code $code; start $((try + 2)) in 30 s" >&2
    sleep 30
done
exit "$code"
