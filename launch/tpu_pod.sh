#!/usr/bin/env bash
# One run on all machines of a Cloud TPU slice, such as a pod.
#
#     export NAME=mine ZONE=us-west4-a ACCELERATOR_TYPE=v5litepod-16 BUCKET=my-bucket
#     launch/tpu_pod.sh create
#     launch/tpu_pod.sh setup
#     launch/tpu_pod.sh run -- --config=configs/imagenet100.py --workdir=/mnt/hamjepa/runs/mine ...
#     launch/tpu_pod.sh tail
#     launch/tpu_pod.sh resume -- --config=...    # the same arguments
#     launch/tpu_pod.sh stop
#     launch/tpu_pod.sh delete
#
#   create  makes the TPU and waits for it
#   setup   copies this directory to all machines, installs it there, and mounts what they share at $MOUNT
#   run     starts the run on all machines and returns; what follows -- is for hamjepa_jax.main, or $MODULE
#   tail    shows what the first machine prints; Ctrl-C ends only the showing
#   resume  after a preemption deletes what is left, then create, setup and run; otherwise only run
#   stop    lets the run save and end, and waits for it
#   delete  deletes the TPU; until then it costs money
#
# With --dry-run before or after the word it prints what it would do and does nothing.
#
# What to set, in the environment:
#
#   NAME              of the TPU; hamjepa by default
#   ZONE              where it is; no default
#   PROJECT           whose it is; gcloud's default if it is not set
#   ACCELERATOR_TYPE  v5litepod-16 by default
#   RUNTIME_VERSION   what fits it: v2-alpha-tpuv5-lite (the default), v2-alpha-tpuv5 for v5p, v2-alpha-tpuv6e for v6e
#   SPOT=1            cheaper, and may be taken away at any time
#   QUEUED=1          asks for a queued resource, and so waits until there is one
#   BUCKET            a Cloud Storage bucket with hierarchical namespace, to mount with gcsfuse, or
#   FILESTORE         HOST:/SHARE of a Filestore, to mount by NFS
#   MODULE            what is run, such as hamjepa_jax.experiments; hamjepa_jax.main by default
#   MOUNT             where; /mnt/hamjepa by default. The workdir must be below it.

# It may be used on a Mac, whose bash is 3.2.
set -euo pipefail

name=${NAME:-hamjepa} accelerator_type=${ACCELERATOR_TYPE:-v5litepod-16}
runtime_version=${RUNTIME_VERSION:-v2-alpha-tpuv5-lite} mount=${MOUNT:-/mnt/hamjepa}
poll_seconds=${POLL_SECONDS:-30} module=${MODULE:-hamjepa_jax.main}

mistake() {
  printf 'error: %s; see launch/tpu_pod.sh --help\n' "$1" >&2
  exit 2
}

# The words as a line that any POSIX shell reads as these words, here and on the machines.
quoted() {
  local word line='' apostrophe="'" escaped="'\\''"
  for word; do
    case $word in
      *[!A-Za-z0-9_./:=,@%+-]* | '') word="'${word//$apostrophe/$escaped}'" ;;
    esac
    line+="${line:+ }$word"
  done
  printf '%s' "$line"
}

# Runs a command, or prints it in a dry run.
act() {
  if $dry_run; then
    quoted "$@"
    echo
  else
    "$@"
  fi
}

gcloud_tpus() { act gcloud compute tpus "$@" "--zone=$ZONE" ${PROJECT:+"--project=$PROJECT"}; }

# Runs a script on all machines at once; further arguments are its arguments.
on_all_machines() {
  gcloud_tpus tpu-vm ssh "$name" --worker=all "--command=$(quoted bash -c "$@")"
}

is_on() { [[ -n ${1:-} && ${1:-} != 0 ]]; }

# The state of the TPU; MISSING if there is none.
state() {
  local answer
  if answer=$(gcloud_tpus tpu-vm describe "$name" '--format=value(state)' 2>&1); then
    # Warnings may come first.
    printf '%s' "${answer##*$'\n'}"
  elif [[ $answer == *NOT_FOUND* || $answer == *"not found"* ]]; then
    printf MISSING
  else
    # Not being allowed to ask must not look like a TPU that is gone.
    printf '%s\n' "$answer" >&2
    return 1
  fi
}

create() {
  if ! is_on "${QUEUED:-}"; then
    gcloud_tpus tpu-vm create "$name" "--accelerator-type=$accelerator_type" "--version=$runtime_version" \
      ${spot:+"$spot"}
    return
  fi
  gcloud_tpus queued-resources create "$name" "--node-id=$name" "--accelerator-type=$accelerator_type" \
    "--runtime-version=$runtime_version" ${spot:+"$spot"}
  if $dry_run; then
    echo "# then wait until it is ACTIVE"
    return
  fi
  local now='' before=''
  while [[ $now != ACTIVE ]]; do
    now=$(gcloud_tpus queued-resources describe "$name" '--format=value(state.state)')
    [[ $now == "$before" ]] || printf '%s: %s\n' "$name" "$now"
    before=$now
    case $now in
      ACTIVE) ;;
      FAILED | SUSPENDED) return 1 ;;
      *) sleep "$poll_seconds" ;;
    esac
  done
}

setup() {
  [[ -n ${BUCKET:-} || -n ${FILESTORE:-} ]] || mistake "BUCKET or FILESTORE: one must be set, which the machines share"
  local archive=${TMPDIR:-/tmp}/$name-hamjepa_jax.tar.gz
  local pack=(tar -czf "$archive" -C "$(dirname "${BASH_SOURCE[0]}")/.." --exclude=__pycache__
    hamjepa_jax configs setup.cfg pyproject.toml README.md LICENSE)
  act "${pack[@]}"
  gcloud_tpus tpu-vm scp "$archive" "$name:hamjepa_jax.tar.gz" --worker=all
  act rm "$archive"
  # The machines' own Python may be older than what this project needs, so uv brings one.
  # shellcheck disable=SC2016
  on_all_machines 'set -eu
mkdir -p hamjepa_jax
tar -xzf hamjepa_jax.tar.gz -C hamjepa_jax
python3 -m pip install --quiet --user uv
test -d hamjepa_jax/.venv || python3 -m uv venv --quiet --python=3.12 hamjepa_jax/.venv
python3 -m uv pip install --quiet --python=hamjepa_jax/.venv/bin/python --editable="./hamjepa_jax[tpu]" tpu-info'
  if [[ -n ${BUCKET:-} ]]; then
    # Nothing may be remembered of a directory in which another machine writes.
    # shellcheck disable=SC2016
    on_all_machines 'set -eu
mountpoint -q "$1" && exit
if ! command -v gcsfuse >/dev/null; then
  key=/usr/share/keyrings/cloud.google.asc
  curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee $key >/dev/null
  echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get -qq -o DPkg::Lock::Timeout=300 update
  sudo apt-get -qq -o DPkg::Lock::Timeout=300 install gcsfuse
fi
sudo mkdir -p "$1"
sudo chown "$(id -u)" "$1"
gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "$2" "$1"' \
      mount "$mount" "$BUCKET"
  else
    # shellcheck disable=SC2016
    on_all_machines 'set -eu
mountpoint -q "$1" && exit
sudo apt-get -qq -o DPkg::Lock::Timeout=300 update
sudo apt-get -qq -o DPkg::Lock::Timeout=300 install nfs-common
sudo mkdir -p "$1"
sudo mount -t nfs "$2" "$1"
sudo chown "$(id -u)" "$1"' mount "$mount" "$FILESTORE"
  fi
}

# The number of the process is kept for `stop`; a machine that was started again may have given it to something else.
# shellcheck disable=SC2016
is_running='pid=$(cat run.pid 2>/dev/null) && grep -qs "hamjepa_jax\." "/proc/$pid/cmdline"'

run() {
  (($#)) || mistake "no arguments for $module after --"
  # What is started outlives the connection. It is the process itself, not the shell around it, that `stop` signals.
  # shellcheck disable=SC2016
  on_all_machines "cd hamjepa_jax || exit
if $is_running; then
  echo \"a run is going on here; stop it, or tail it\" >&2
  exit 1
fi"'
nohup bash -c '\''(echo "$BASHPID" >run.pid && exec "$@"); echo "exit code $?"'\'' run \
  .venv/bin/python -m "$@" >>run.log 2>&1 </dev/null &' run "$module" "$@"
}

stop() {
  # shellcheck disable=SC2016
  on_all_machines "cd hamjepa_jax || exit
if ! { $is_running; }; then
  echo no run is going on here
  exit
fi"'
kill -s TERM "$pid"
for ((i = 0; i < 300; i++)); do
  if ! kill -0 "$pid" 2>/dev/null; then
    tail -n 2 run.log
    exit
  fi
  sleep 1
done
echo "process $pid has not ended within 300 s; see tail" >&2
exit 1' stop
}

delete() {
  if is_on "${QUEUED:-}"; then
    # With --force it deletes the TPU, too.
    gcloud_tpus queued-resources delete "$name" --force "$@"
  else
    gcloud_tpus tpu-vm delete "$name" "$@"
  fi
}

resume() {
  (($#)) || mistake "no arguments for $module after --"
  # In a dry run it cannot be known.
  local now=unknown
  if $dry_run; then
    gcloud_tpus tpu-vm describe "$name" '--format=value(state)'
    printf '# only if it is PREEMPTED, TERMINATED or missing:\n'
  else
    now=$(state)
    printf '%s: %s\n' "$name" "$now"
  fi
  case $now in
    READY) ;;
    PREEMPTED | TERMINATED | MISSING | unknown)
      # A request for a queued resource stays when its TPU is gone, and its name with it.
      if [[ $now != MISSING ]]; then
        delete --quiet
      elif is_on "${QUEUED:-}"; then
        delete --quiet || true
      fi
      create
      setup
      ;;
    *)
      echo "error: neither ready nor preempted; wait, or see the console" >&2
      exit 1
      ;;
  esac
  if $dry_run; then echo "# in any case:"; fi
  run "$@"
}

dry_run=false action=''
while (($#)); do
  case $1 in
    --dry-run) dry_run=true ;;
    --help | -h)
      sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    --)
      shift
      break
      ;;
    create | setup | run | tail | resume | stop | delete)
      [[ -z $action ]] || mistake "$1: one thing at a time, $action was given before"
      action=$1
      ;;
    *) mistake "$1: not known; the arguments of $module come after --" ;;
  esac
  shift
done
[[ -n $action ]] || mistake "say what to do: create, setup, run, tail, resume, stop or delete"
: "${ZONE:=}"
[[ -n $ZONE ]] || mistake "ZONE: must be set, such as ZONE=us-west4-a"
spot=''
if is_on "${SPOT:-}"; then spot=--spot; fi

case $action in
  tail) gcloud_tpus tpu-vm ssh "$name" --worker=0 '--command=tail -n 40 -F hamjepa_jax/run.log' ;;
  run | resume) "$action" "$@" ;;
  *) "$action" ;;
esac
