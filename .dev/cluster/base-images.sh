#!/usr/bin/env bash
# Makes local stand-ins for public base images, so that a Dockerfile can be built where no image registry is reached.
#   base-images.sh TAG...      e.g. gcr.io/distroless/base-nossl-debian12:nonroot docker.io/oven/bun:1.4.5
# A tag with "distroless" gets Debian's glibc, CA certificates, time zones and a nonroot user (65532), for amd64 and
# arm64; a tag with "oven/bun" gets a Debian root with the `bun` program from the npm package of that version, for
# amd64. Then: buildah bud --pull-never --isolation chroot --network host -f Dockerfile .
# Needs: buildah, debootstrap, npm; root.
set -euo pipefail
fetch() { # ARCH DIR PACKAGE...: unpack Debian packages for ARCH without installing them
  local arch=$1 root=$2 lists; shift 2; lists=$packages/$arch; mkdir -p "$lists/partial"
  local opts=(-oAPT::Sandbox::User=root -oAPT::Architecture="$arch" -oAPT::Architectures="$arch")
  opts+=(-oDir::State::Lists="$lists")
  [[ -n $(ls -A "$lists" | grep -v partial) ]] || apt-get "${opts[@]}" -qq update >/dev/null
  (
    cd "$work"
    for p in "$@"; do apt-get "${opts[@]}" -qq download "$p" >/dev/null; done
    for d in *.deb; do dpkg -x "$d" "$root"; done
    rm -f -- *.deb
  )
}
import() { # TAG ARCH ROOT USER
  local c certificates=/etc/ssl/certs/ca-certificates.crt
  c=$(buildah from --arch "$2" scratch); buildah copy -q "$c" "$3" / >/dev/null
  buildah config --arch "$2" --os linux --user "$4" --env PATH=/usr/local/bin:/usr/bin:/bin \
    --env SSL_CERT_FILE="$certificates" --env NODE_EXTRA_CA_CERTS="$certificates" "$c"
  buildah commit -q --rm "$c" "$1"
}
packages=$(mktemp -d); trap 'rm -rf "$packages" "${work:-}"' EXIT
for tag in "$@"; do
  work=$(mktemp -d)
  case $tag in
    *distroless*)
      buildah manifest rm "$tag" >/dev/null 2>&1 || buildah rmi -f "$tag" >/dev/null 2>&1 || true
      buildah manifest create "$tag" >/dev/null
      for arch in amd64 arm64; do
        root=$work/$arch; mkdir -p "$root/etc/ssl/certs" "$root/home/nonroot" "$root/tmp"; chmod 1777 "$root/tmp"
        fetch "$arch" "$root" libc6 tzdata; rm -rf "$root/usr/share/doc" "$root/usr/share/man"
        cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
        printf '%s:/sbin/nologin\n' root:x:0:0:root:/root nonroot:x:65532:65532:nonroot:/home/nonroot \
          >"$root/etc/passwd"
        printf 'root:x:0:\nnonroot:x:65532:\n' >"$root/etc/group"
        [[ -e $root/lib64 || $arch != amd64 ]] || ln -s lib "$root/lib64"
        import "localhost/stand-in-$arch" "$arch" "$root" 65532 >/dev/null
        buildah manifest add --arch "$arch" "$tag" "localhost/stand-in-$arch" >/dev/null
      done ;;
    *oven/bun*)
      version=${tag##*:}; version=${version%%-*}
      debootstrap --variant=minbase --include=ca-certificates bookworm "$work/root" >/dev/null
      (cd "$work" && npm pack --silent "@oven/bun-linux-x64@$version" >/dev/null && tar xzf ./*.tgz)
      # The machine that builds decides whom to trust.
      cp /etc/ssl/certs/ca-certificates.crt "$work/root/etc/ssl/certs/ca-certificates.crt"
      install -m755 "$work/package/bin/bun" "$work/root/usr/local/bin/bun"; ln -s bun "$work/root/usr/local/bin/bunx"
      mkdir -p "$work/root/home/bun/app"
      import "$tag" amd64 "$work/root" root >/dev/null ;;
    *) echo "no stand-in for $tag" >&2; exit 1 ;;
  esac
  rm -rf "$work"; echo "$tag"
done
