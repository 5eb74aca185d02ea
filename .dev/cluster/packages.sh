#!/usr/bin/env bash
# Installs those Debian packages that the scripts of this folder need and this machine lacks.
# Needs: Debian or Ubuntu, root. The rest of what they need is Go (build.sh says which) and npm (base-images.sh).
set -euo pipefail
packages=(etcd-server openssl jq containerd runc containernetworking-plugins busybox-static buildah debootstrap qemu-user-static)
missing=()
for p in "${packages[@]}"; do
  [[ $(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null) == installed ]] || missing+=("$p")
done
((${#missing[@]})) || exit 0
echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update </dev/null
apt-get -qq install -y --no-install-recommends "${missing[@]}" </dev/null >/dev/null
