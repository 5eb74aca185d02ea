#!/usr/bin/env bash
# Takes down what up.sh started: processes, pods, mounts. The files stay, for reading.
#   down.sh DIR              that cluster
#   down.sh --ports PORT...  every cluster that uses one of these ports
#   down.sh                  every cluster that up.sh has left running on this machine, whatever became of its directory
# Every process of a cluster carries THROW_AWAY_CLUSTER=DIR and THROW_AWAY_PORTS in its environment; that, not a file,
# is how they are found.
set -uo pipefail

value_of() { # PID VARIABLE
  { tr '\0' '\n' <"/proc/$1/environ" | sed -n "s/^$2=//p"; } 2>/dev/null # it may have ended
}
pids_of() { # DIR: newest first
  local f pid
  for f in $(grep -lzsxF "THROW_AWAY_CLUSTER=$1" /proc/[0-9]*/environ); do
    pid=${f#/proc/}; echo "${pid%/environ}"
  done | sort -rn
}
take_down() {
  local dir=$1 pids kubelet shim child
  # The kubelet first, lest it starts again what we stop; then the containers, which are children of their shims.
  for kubelet in $(pids_of "$dir"); do
    [[ $(cat "/proc/$kubelet/comm" 2>/dev/null) == kubelet ]] && kill -KILL "$kubelet"
  done
  for shim in $(pids_of "$dir"); do
    [[ $(cat "/proc/$shim/comm" 2>/dev/null) == containerd-shim* ]] || continue
    for child in $(cat "/proc/$shim/task"/*/children 2>/dev/null); do kill -KILL "$child" 2>/dev/null; done
  done
  for _ in $(seq 50); do
    pids=$(pids_of "$dir"); [[ -n $pids ]] || break
    kill -KILL $pids 2>/dev/null; sleep 0.1
  done
  awk -v d="$dir/" 'index($2, d) == 1 {print $2}' /proc/mounts | sort -r |
    while read -r m; do umount -l "$m" 2>/dev/null; done
  [[ ! -d $dir/cni ]] || rm -f $(ls /var/lib/cni/results/throw-away-* 2>/dev/null |
    sed -E 's/(.*)throw-away-(.*)-eth0/& \1cni-loopback-\2-lo/')
}

clusters() { # [PORT...]: the directories of the clusters that use one of these ports; of all without any
  local f pid p
  for f in $(grep -lzs "^THROW_AWAY_CLUSTER=" /proc/[0-9]*/environ); do
    pid=${f#/proc/}; pid=${pid%/environ}
    (($#)) || value_of "$pid" THROW_AWAY_CLUSTER
    for p in "$@"; do
      [[ " $(value_of "$pid" THROW_AWAY_PORTS) " != *" $p "* ]] || value_of "$pid" THROW_AWAY_CLUSTER
    done
  done | sort -u
}

if [[ $# -gt 0 && $1 != --ports ]]; then
  take_down "$(realpath -m "$1")"
elif (($# != 1)); then
  clusters "${@:2}" | while read -r dir; do echo "taking down the cluster left in $dir" >&2; take_down "$dir"; done
fi
exit 0
