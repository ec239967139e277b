#!/bin/sh
# Builds the page from dashboard/app into dashboard/dist, unless what is there is newer than all that it is made of.
# Without Node it says so in one line and succeeds: the program is whole without the page. With CI=true it fails.
set -eu
cd "$(dirname "$0")"
if ! command -v node >/dev/null 2>&1 || ! command -v npm >/dev/null 2>&1; then
  echo "dashboard: no Node.js (>= 20.19) with npm here, so the program is built without its page; all the rest is there"
  [ "${CI:-}" = true ] && exit 1
  exit 0
fi
sources="app build.sh"
[ -d ../clients/typescript/src ] && sources="$sources ../clients/typescript/src"
if [ -f dist/index.html ] && [ -z "$(find $sources -name node_modules -prune -o -newer dist/index.html -type f -print | head -n 1)" ]; then
  exit 0
fi
cd app
if [ ! -d node_modules ] || [ package-lock.json -nt node_modules/.package-lock.json ]; then
  npm ci --no-audit --no-fund --silent --ignore-scripts
fi
echo "dashboard: building the page"
npm run --silent build -- --logLevel warn
touch ../dist/index.html
