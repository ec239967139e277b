#!/bin/sh
# Builds the page from dashboard/app into dashboard/dist, unless what is there is newer than all that it is made of.
# Without Node.js, or where its packages can't be had, it says so in one line and succeeds: the program is whole without
# the page. With --required that is a failure.
set -eu
cd "$(dirname "$0")"
without() {
  echo "dashboard: $1, so the program is built without its page; all the rest is there" >&2
  [ "$required" = --required ] && exit 1
  exit 0
}
required="${1:-}"
command -v node >/dev/null 2>&1 && command -v npm >/dev/null 2>&1 || without "no Node.js (20.19 or newer) with npm here"
if [ -f dist/index.html ] &&
  [ -z "$(find app build.sh ../clients/typescript/src -name node_modules -prune -o -newer dist/index.html -type f -print | head -n 1)" ]; then
  exit 0
fi
cd app
if [ ! -d node_modules ] || [ package-lock.json -nt node_modules/.package-lock.json ]; then
  echo "dashboard: fetching what the page is built with"
  npm ci --no-audit --no-fund --silent --ignore-scripts || without "npm ci failed (in dashboard/app)"
fi
echo "dashboard: building the page"
npm run --silent build -- --logLevel warn || without "npm run build failed (in dashboard/app)"
touch ../dist/index.html # also where nothing came out differently
