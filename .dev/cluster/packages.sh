#!/usr/bin/env bash
# Installs those Debian packages that the scripts of this folder need and this machine lacks.
# Needs: Debian or Ubuntu, root. The rest of what they need is Go (build.sh says which) and npm (base-images.sh).
set -euo pipefail
packages=(etcd-server openssl jq containerd runc containernetworking-plugins busybox-static buildah debootstrap qemu-user-static
  libc6-arm64-cross chromium fonts-dejavu-core)
missing=()
for p in "${packages[@]}"; do
  [[ $(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null) == installed ]] || missing+=("$p")
done
promtool=$(command -v promtool || true)
[[ ${#missing[@]} == 0 && $promtool ]] && exit 0
echo "installing ${missing[*]} ${promtool:-promtool}"
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update </dev/null
((${#missing[@]} == 0)) || apt-get -qq install -y --no-install-recommends "${missing[@]}" </dev/null >/dev/null
[[ $promtool ]] && exit 0
# Out of its package, not with it: that would start a server.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
(cd "$work" && chmod 755 . && apt-get -qq download prometheus </dev/null)
dpkg-deb --fsys-tarfile "$work"/prometheus_*.deb | tar xC /usr/local/bin --strip-components=3 ./usr/bin/promtool
