#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload
  # An upgrade of a running service; a first installation is started by whoever has configured it.
  systemctl try-restart statussync.service
fi
