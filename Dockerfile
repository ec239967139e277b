# syntax=docker/dockerfile:1
FROM --platform=$BUILDPLATFORM node:22-bookworm-slim AS page
WORKDIR /src/dashboard/app
COPY dashboard/app/package.json dashboard/app/package-lock.json ./
RUN --mount=type=cache,target=/root/.npm npm ci --no-audit --no-fund --ignore-scripts
COPY clients/typescript /src/clients/typescript
COPY dashboard/app ./
RUN npm run build

FROM --platform=$BUILDPLATFORM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY . .
# What was built outside may be older than its sources.
RUN rm -rf dashboard/dist
COPY --from=page /src/dashboard/dist dashboard/dist
ARG TARGETOS TARGETARCH VERSION=dev
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -ldflags "-s -w -X main.version=$VERSION" -o /out/statussync ./cmd/statussync
# The volume's folder belongs to the user that the service runs as; the last image has no shell to make it.
RUN mkdir -m 0700 /out/data

FROM gcr.io/distroless/static-debian12:nonroot
ARG VERSION=dev
LABEL org.opencontainers.image.title="statussync" \
      org.opencontainers.image.description="The true status of a fleet of MCP servers" \
      org.opencontainers.image.source="https://github.com/agentopia/statussync" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION"
COPY --from=build /out/statussync /usr/local/bin/statussync
COPY --from=build --chown=65532:65532 /out/data /data
# Nothing but /data is written, so the root file system can be read-only.
USER 65532:65532
VOLUME ["/data"]
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=20s --retries=3 CMD ["/usr/local/bin/statussync", "healthcheck", "--timeout", "4s"]
ENTRYPOINT ["/usr/local/bin/statussync"]
CMD ["serve", "--config", "/etc/statussync/statussync.yaml"]
