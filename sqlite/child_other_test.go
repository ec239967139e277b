//go:build !linux

package sqlite

import "fmt"

func childOS(mode, _ string) error { return fmt.Errorf("unknown mode %q", mode) }
