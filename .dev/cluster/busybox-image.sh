#!/usr/bin/env bash
# Writes OUT.tar, a docker archive of docker.io/local/busybox:1 made from Debian's static busybox. It needs no image
# registry.
#   busybox-image.sh OUT.tar
# Needs: busybox-static.
set -euo pipefail
out=$(realpath -m "${1:?busybox-image.sh OUT.tar}"); work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
mkdir -p "$work/root/bin" "$work/root/tmp" "$work/root/etc"; chmod 1777 "$work/root/tmp"
cp /bin/busybox "$work/root/bin/busybox"
for a in $(/bin/busybox --list | grep -vx busybox); do ln -s busybox "$work/root/bin/$a"; done
printf 'root:x:0:0::/:/bin/sh\nnonroot:x:65532:65532::/:/bin/sh\n' >"$work/root/etc/passwd"
tar -C "$work/root" --owner=0 --group=0 --numeric-owner -cf "$work/layer.tar" .
diff=$(sha256sum "$work/layer.tar" | cut -d' ' -f1)
config='{"Cmd":["/bin/sleep","2147483647"],"Env":["PATH=/bin"]}'
layers='{"type":"layers","diff_ids":["sha256:%s"]}'
printf "{\"architecture\":\"%s\",\"os\":\"linux\",\"config\":$config,\"rootfs\":$layers}" \
  "$(dpkg --print-architecture)" "$diff" >"$work/config.json"
printf '[{"Config":"config.json","RepoTags":["docker.io/local/busybox:1"],"Layers":["layer.tar"]}]' \
  >"$work/manifest.json"
tar -C "$work" -cf "$out" manifest.json config.json layer.tar
