#!/usr/bin/env bash
# Installs those Debian packages that the scripts of this folder need and this machine lacks.
# Needs: Debian or Ubuntu, root. The rest of what they need is Go (build.sh says which) and npm (base-images.sh).
set -euo pipefail
packages=(etcd-server openssl jq containerd runc containernetworking-plugins busybox-static buildah debootstrap
  qemu-user-static libc6-arm64-cross chromium fonts-dejavu-core)
missing=()
for p in "${packages[@]}"; do
  [[ $(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null) == installed ]] || missing+=("$p")
done
# Prometheus and Alertmanager: out of their packages, not with them, which would start services.
programs=()
for p in promtool prometheus prometheus-alertmanager; do command -v "$p" >/dev/null || programs+=("$p"); done
[[ -d /usr/share/prometheus/alertmanager ]] || programs+=(prometheus-alertmanager)
[[ ${#missing[@]} == 0 && ${#programs[@]} == 0 ]] && exit 0
echo "installing ${missing[*]} ${programs[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update </dev/null
((${#missing[@]} == 0)) || apt-get -qq install -y --no-install-recommends "${missing[@]}" </dev/null >/dev/null
((${#programs[@]} == 0)) && exit 0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
(cd "$work" && apt-get -qq -o APT::Sandbox::User=root download prometheus prometheus-alertmanager </dev/null)
for package in "$work"/*.deb; do dpkg-deb -x "$package" "$work/root"; done
for p in "${programs[@]}"; do install "$work/root/usr/bin/$p" /usr/local/bin/; done
# Alertmanager reads its templates even if no receiver uses them.
mkdir -p /usr/share/prometheus
cp -r "$work/root/usr/share/prometheus/alertmanager" /usr/share/prometheus/
