#!/usr/bin/env bash
# The paper's table with error bars: all runs, and of each published gain whether it holds, in docs/reproduction.md.
#
#     launch/reproduce_cifar100.sh --config.data.data_dir=DIR                  # one GPU or TPU machine
#     launch/reproduce_cifar100.sh --scaled-down --config.data.data_dir=DIR    # two CPU cores, two hours
#     launch/reproduce_cifar100.sh --pod --config.data.data_dir=/mnt/hamjepa/data
#     launch/reproduce_cifar10.sh ...; launch/reproduce_tiny_imagenet100.sh ...
#
#   --scaled-down  a protocol for two CPU cores; docs/reproduction.md says what is scaled down
#   --pod          on all machines of a Cloud TPU slice, through launch/tpu_pod.sh, which says what must be set. When the
#                  runs are done, --collect with the --output that is printed makes the results, wherever it is mounted
#   --dry-run      prints the command and starts nothing
#
# All else is for hamjepa_jax.experiments, such as --seeds=5, --list, --at_once=2, --config.GROUP.FIELD=VALUE. The data set
# must have been prepared; see docs/data.md. Stop it with Ctrl-C, and give the same command again to go on: what is done
# is skipped. Results go to results/NAME: a record of every run, table, plot, and the gains with their tests. Under
# Slurm, see launch/experiments.sbatch, and collect at the end. The interpreter is $PYTHON, or python.

set -euo pipefail

name=$(basename "$0" .sh)
data_set=${name#reproduce_}
cd "$(dirname "$0")/.."

dry_run=false pod=false arguments=()
while (($#)); do
  case $1 in
    --scaled-down) data_set=${data_set%_scaled_down}_scaled_down ;;
    --pod) pod=true ;;
    --dry-run) dry_run=true ;;
    --help | -h)
      sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    *) arguments+=("$1") ;;
  esac
  shift
done

command=("${PYTHON:-python}" -m hamjepa_jax.experiments)
if $pod; then
  command=(env MODULE=hamjepa_jax.experiments launch/tpu_pod.sh resume --)
  arguments+=(--at_once=1 --runs_only "--output=${MOUNT:-/mnt/hamjepa}/runs/reproduce/$data_set")
fi
command+=("--reproduction=$data_set" ${arguments[@]+"${arguments[@]}"})
if $dry_run; then
  printf -v line '%q ' "${command[@]}"
  printf '%s\n' "${line% }"
  exit 0
fi
exec "${command[@]}"
