#!/usr/bin/env bash
# One run on Google Kubernetes Engine. Set what launch/gke.yaml marks, and then:
#
#     launch/gke.sh                 # submits the run on a TPU slice; launch/gke.sh submit gpu for GPU nodes
#     launch/gke.sh log [gpu]       # follows what process 0 prints
#     launch/gke.sh stop [gpu]      # lets the run save and end, and waits for it; submit it again to go on
#     launch/gke.sh --dry-run ...   # prints the command and does nothing
#
# The cluster is the one that kubectl is set to.

set -euo pipefail

dry_run=false action=submit accelerator=tpu
for word; do
  case $word in
    --dry-run) dry_run=true ;;
    submit | log | stop) action=$word ;;
    tpu | gpu) accelerator=$word ;;
    --help | -h)
      sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    *)
      printf 'error: %s: not known; see launch/gke.sh --help\n' "$word" >&2
      exit 2
      ;;
  esac
done

manifest=$(dirname "${BASH_SOURCE[0]}")/gke.yaml
pod_0=jobset.sigs.k8s.io/jobset-name=hamjepa-$accelerator,batch.kubernetes.io/job-completion-index=0
case $action in
  submit) command=(kubectl apply "--filename=$manifest" "--selector=accelerator=$accelerator") ;;
  log) command=(kubectl logs --follow --tail=40 --container=main "--selector=$pod_0") ;;
  # In the foreground: it returns when the pods have ended.
  stop) command=(kubectl delete jobset "hamjepa-$accelerator" --cascade=foreground) ;;
esac

if $dry_run; then
  printf -v line '%q ' "${command[@]}"
  printf '%s\n' "${line% }"
else
  exec "${command[@]}"
fi
