# The operator's image for amd64 and arm64: one binary on distroless glibc, without a shell, run by a user that is not
# root. To make a build repeatable, pin the base image:
#   --build-arg BASE=gcr.io/distroless/base-nossl-debian12:nonroot@sha256:...
ARG BASE=gcr.io/distroless/base-nossl-debian12:nonroot

# Bun compiles for other platforms, so this stage runs on the build machine's own platform and needs no emulator.
FROM --platform=$BUILDPLATFORM docker.io/oven/bun:1.4.5 AS build
WORKDIR /src
COPY package.json bun.lock ./
# Development packages too: the notices read Bun's licences from one of them.
RUN bun install --frozen-lockfile --ignore-scripts
COPY LICENSE operator.ts cli.ts dashboard.html ./
COPY .dev/notices.ts .dev/
RUN mkdir /out && cp LICENSE /out/LICENSE.txt && bun .dev/notices.ts /out/THIRD-PARTY-NOTICES.txt
ARG TARGETARCH
RUN case "$TARGETARCH" in \
      amd64) target=bun-linux-x64 ;; \
      arm64) target=bun-linux-arm64 ;; \
      *) echo "no build for $TARGETARCH"; exit 1 ;; \
    esac \
 && bun build operator.ts --compile --target="$target" --minify --sourcemap --bytecode \
      --no-compile-autoload-dotenv --no-compile-autoload-bunfig --outfile /out/flickr-immich-k8s-sync-operator \
 && rm -f /out/*.map

# The platform is the default here, but buildah would use that of the build stage.
FROM --platform=$TARGETPLATFORM $BASE
LABEL org.opencontainers.image.title="flickr-immich-k8s-sync-operator" \
      org.opencontainers.image.description="Kubernetes operator that restarts failed Jobs and never loses one" \
      org.opencontainers.image.version="1.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/vroomfondel/flickr-immich-k8s-sync-operator"
COPY --from=build /out/ /
# A numeric user: runAsNonRoot cannot check a name.
USER 65532:65532
ENTRYPOINT ["/flickr-immich-k8s-sync-operator"]
