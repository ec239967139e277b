#!/bin/sh
set -e
# deb: remove; rpm: 0 packages stay. An upgrade leaves the service running.
if [ -d /run/systemd/system ] && { [ "${1:-}" = remove ] || [ "${1:-}" = 0 ]; }; then
  systemctl disable --now statussync.service
fi
