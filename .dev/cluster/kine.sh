#!/usr/bin/env bash
# Builds kine, which lets Kubernetes keep its objects in SQLite as k3s does, and prints where the program is.
#   kine.sh [VERSION]           beside the programs of build.sh
# About 1.5 minutes on two cores; a second call returns at once. Needs: Go, gcc.
set -euo pipefail
version=${1:-v0.14.12}
bin=${KUBE_BIN:-$HOME/.cache/kube/kine}
kine=$bin/kine-$version
mkdir -p "$bin"
exec 9>"$bin/.kine.lock"; flock 9 # two at once: the second one waits, and finds it done
if [[ ! -x $kine ]]; then
  work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
  CGO_ENABLED=1 GOBIN=$work go install -trimpath -ldflags "-s -w" "github.com/k3s-io/kine@$version" >&2
  mv "$work/kine" "$kine"
fi
echo "$kine"
