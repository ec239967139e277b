#!/bin/sh
# Makes what packages hold beside the binary: completions and manual pages, into the folder given. The program is built
# for it, unless a second argument names one.
set -eu
cd "$(dirname "$0")/../.."
out="${1:?a folder}"
rm -rf "$out"
mkdir -p "$out/completions" "$out/man"
program="${2:-}"
if [ -z "$program" ]; then
  tmp="$(mktemp -d)"
  trap 'rm -rf "$tmp"' EXIT
  program="$tmp/statussync"
  go build -trimpath -o "$program" ./cmd/statussync
fi
for shell in bash zsh fish powershell; do
  "$program" completion "$shell" > "$out/completions/statussync.$shell"
done
# The date of the pages is that of the commit, so that the same commit gives the same files.
SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}" "$program" man "$out/man"
gzip -9n "$out"/man/*.1
