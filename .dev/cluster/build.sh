#!/usr/bin/env bash
# Builds a real Kubernetes control plane and node agent from their Go modules.
#   build.sh [VERSION]   default 1.35.1; the binaries land in ${KUBE_BIN:-~/.cache/kube/VERSION}, whose path it prints
# About 8 minutes on two cores; a second call with the same version returns at once.
# Needs: the Go that the version asks for (1.25 for 1.35), jq.
set -euo pipefail
version=${1:-1.35.1}
bin=${KUBE_BIN:-$HOME/.cache/kube/$version}
programs=(kube-apiserver kube-controller-manager kube-scheduler kubectl kubelet)
mkdir -p "$bin"
exec 9>"$bin/.lock"; flock 9 # two at once: the second one waits, and finds it done
missing=(); for p in "${programs[@]}"; do [[ -x $bin/$p ]] || missing+=("$p"); done
if ((${#missing[@]} == 0)); then echo "$bin"; exit 0; fi

work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
cd "$work"
# k8s.io/kubernetes keeps its sister modules in ./staging; as modules they are v0.MINOR.PATCH.
module=$(GOFLAGS=-mod=mod go mod download -json "k8s.io/kubernetes@v$version") || {
  jq -r '.Error // "cannot download it"' <<<"$module" >&2; exit 1
}
gomod=$(jq -r .GoMod <<<"$module")
{
  printf 'module cluster.local/kube\n\ngo %s\n\n' "$(awk '$1 == "go" {print $2}' "$gomod")"
  printf 'require k8s.io/kubernetes v%s\n\nreplace (\n' "$version"
  awk -v s="v0.${version#1.}" '/=> \.\/staging/ {print "\t" $1 " => " $1 " " s}' "$gomod"
  printf ')\n'
} >go.mod
{
  printf '//go:build tools\n\npackage tools\n\nimport (\n'
  for p in "${programs[@]}"; do printf '\t_ "k8s.io/kubernetes/cmd/%s"\n' "$p"; done
  printf ')\n'
} >tools.go
go mod tidy -e >&2
minor=${version#*.}; minor=${minor%%.*}
v="-X k8s.io/component-base/version"
ld="-s -w $v.gitVersion=v$version $v.gitMajor=1 $v.gitMinor=$minor $v.gitTreeState=clean"
for p in "${missing[@]}"; do
  started=$SECONDS
  CGO_ENABLED=0 go build -mod=mod -trimpath -ldflags "$ld" -o "$bin/$p.tmp" "k8s.io/kubernetes/cmd/$p"
  mv "$bin/$p.tmp" "$bin/$p"
  echo "built $p in $((SECONDS - started)) s" >&2
done
echo "$bin"
