#!/usr/bin/env bash
# One run in several processes of this machine, which find each other over the loopback interface.
#
#     launch/local.sh --processes=2 -- --config=configs/digits.py --workdir=runs/mine
#     launch/local.sh --processes=2 --devices_per_process=4 -- --config=configs/digits.py    # 8 pretended CPU devices
#     launch/local.sh --dry-run --processes=2 -- --config=configs/digits.py
#
#   --processes=N            number of processes; 2 by default
#   --devices_per_process=M  on CPUs, M pretended devices in each process; on NVIDIA GPUs, M of them for each process
#                            instead of an equal share
#   --port=P                 where process 0 listens; a free port by default
#   --patience=S             seconds that the others may take to end once one has failed; 90 by default
#   --dry-run                prints the commands and starts nothing
#
# Everything after -- is for hamjepa_jax.main. The interpreter is $PYTHON, or python.
#
# Ctrl-C and SIGTERM go to every process once: all of them save and end; a second one ends them at once. When a process
# fails, the others notice within about a minute and end with 4; what has not ended by then is killed. The exit code is
# that of the process which failed first for a reason of its own, and 4 if none had one.
#
# One process uses all GPUs or TPU chips of a machine, and is faster. This is for trying out several.

set -euo pipefail

mistake() {
  printf 'error: %s; see launch/local.sh --help\n' "$1" >&2
  exit 2
}

say() { printf 'local.sh: %s\n' "$1" >&2; }

positive() {
  [[ $2 =~ ^[1-9][0-9]{0,8}$ ]] || mistake "$1=$2: must be a whole number above 0"
}

processes=2 devices_per_process='' port='' patience=90 dry_run=false
while (($#)); do
  case $1 in
    --processes=*) processes=${1#*=} && positive --processes "$processes" ;;
    --devices_per_process=*) devices_per_process=${1#*=} && positive --devices_per_process "$devices_per_process" ;;
    --port=*) port=${1#*=} && positive --port "$port" ;;
    --patience=*) patience=${1#*=} && positive --patience "$patience" ;;
    --dry-run) dry_run=true ;;
    --help | -h)
      sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    --)
      shift
      break
      ;;
    *) mistake "$1: not known; the arguments of hamjepa_jax.main come after --" ;;
  esac
  shift
done
(($#)) || mistake "no arguments for hamjepa_jax.main after --"

# Ports from 32768 on may be taken at any moment by a connection that goes out.
while [[ -z $port ]]; do
  candidate=$((20000 + RANDOM % 12768))
  (exec 3<>"/dev/tcp/127.0.0.1/$candidate") 2>/dev/null || port=$candidate
done

# The GPUs to share. A single process takes all that it sees.
gpus=()
if ((processes > 1)) && [[ ${JAX_PLATFORMS:-cuda} != cpu ]] && command -v nvidia-smi >/dev/null; then
  if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
    IFS=, read -r -a gpus <<<"$CUDA_VISIBLE_DEVICES"
  else
    # It is there and fails on machines whose driver is not loaded.
    mapfile -t gpus < <(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null || true)
  fi
fi
share=0
if ((${#gpus[@]})); then
  share=${devices_per_process:-$((${#gpus[@]} / processes))}
  ((share > 0 && share * processes <= ${#gpus[@]})) ||
    mistake "${#gpus[@]} GPUs are not enough for $processes processes${devices_per_process:+ of $devices_per_process}"
fi

# Sets `command` to what process $1 runs; the other arguments are the user's.
make_command() {
  local number=$1
  shift
  command=()
  if ((share)); then
    local IFS=,
    command=(env "CUDA_VISIBLE_DEVICES=${gpus[*]:number * share:share}")
  elif [[ -n $devices_per_process ]]; then
    command=(env "XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$devices_per_process")
  fi
  command+=(
    "${PYTHON:-python}" -m hamjepa_jax.main "$@"
    "--coordinator_address=127.0.0.1:$port" "--num_processes=$processes" "--process_id=$number"
  )
}

if $dry_run; then
  for ((i = 0; i < processes; i++)); do
    make_command "$i" "$@"
    printf -v line '%q ' "${command[@]}"
    printf '%s\n' "${line% }"
  done
  exit 0
fi

pids=() signalled=false
# To the main process of each, because the processes that read data for it leave signals to it.
forward() {
  signalled=true
  local pid
  for pid in ${pids[@]+"${pids[@]}"}; do
    kill -s "$1" "$pid" 2>/dev/null || true
  done
}
trap 'forward INT' INT
trap 'forward TERM' TERM
# The terminal is gone.
trap 'forward TERM' HUP

# With job control every process leads a group of its own. Otherwise a Ctrl-C in the terminal would reach it twice, from
# the terminal and from here, and the second means "at once"; and a shell starts what runs in the background with SIGINT
# ignored.
set -m
for ((i = 0; i < processes; i++)); do
  $signalled && break
  make_command "$i" "$@"
  "${command[@]}" </dev/null &
  pids+=($!)
done
set +m

cause=0 lost=false deadline='' running=(${pids[@]+"${pids[@]}"})
while ((${#running[@]})); do
  # A signal that comes meanwhile is handled afterwards, and Ctrl-C ends the sleep, too.
  sleep 0.2 || true
  remaining=()
  for pid in "${running[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then
      remaining+=("$pid")
      continue
    fi
    code=0
    wait "$pid" || code=$?
    ((code)) || continue
    for i in "${!pids[@]}"; do
      [[ ${pids[i]} != "$pid" ]] || say "process $i ended with exit code $code"
    done
    if ((code == 4 || code == 134)); then
      lost=true
    elif ((cause == 0)); then
      cause=$code
    fi
    deadline=${deadline:-$((SECONDS + patience))}
  done
  running=(${remaining[@]+"${remaining[@]}"})
  if [[ -n $deadline ]] && ((SECONDS > deadline && ${#running[@]})); then
    for pid in "${running[@]}"; do
      say "killing process $pid, which has not ended within $patience s of the first that failed"
      kill -s KILL -- "-$pid" 2>/dev/null || true
      # The shell would say in its own words that it was killed.
      wait "$pid" 2>/dev/null || true
    done
    running=()
  fi
done

((cause == 0)) || exit "$cause"
if $lost; then exit 4; fi
