# The operator's image, for amd64 and arm64: one binary on glibc, no shell, nobody's root.
# BASE takes a digest where a build must be repeatable: --build-arg BASE=gcr.io/distroless/base-nossl-debian12:nonroot@sha256:...
ARG BASE=gcr.io/distroless/base-nossl-debian12:nonroot

# Bun compiles for other platforms, so that this stage always runs on the machine's own, not in an emulator.
FROM --platform=$BUILDPLATFORM docker.io/oven/bun:1.4.5 AS build
WORKDIR /src
COPY package.json bun.lock ./
RUN bun install --frozen-lockfile --production
COPY operator.ts cli.ts ./
ARG TARGETARCH
RUN case "$TARGETARCH" in amd64) target=bun-linux-x64 ;; arm64) target=bun-linux-arm64 ;; *) echo "no build for $TARGETARCH"; exit 1 ;; esac \
 && bun build operator.ts --compile --target="$target" --minify --sourcemap --bytecode \
      --no-compile-autoload-dotenv --no-compile-autoload-bunfig --outfile /out/flickr-immich-k8s-sync-operator \
 && rm -f /out/*.map

# The default, but buildah would take the build stage's platform.
FROM --platform=$TARGETPLATFORM $BASE
LABEL org.opencontainers.image.title="flickr-immich-k8s-sync-operator" \
      org.opencontainers.image.description="Kubernetes operator that brings failed Jobs back, and never loses one" \
      org.opencontainers.image.version="1.0.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/vroomfondel/flickr-immich-k8s-sync-operator"
COPY --from=build /out/flickr-immich-k8s-sync-operator /flickr-immich-k8s-sync-operator
# A number: runAsNonRoot cannot tell whether a name is root.
USER 65532:65532
ENTRYPOINT ["/flickr-immich-k8s-sync-operator"]
