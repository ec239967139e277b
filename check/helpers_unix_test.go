//go:build unix

package check

import (
	"os/signal"
	"syscall"
)

func ignoreSignals() { signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP) }

func newSession() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }
