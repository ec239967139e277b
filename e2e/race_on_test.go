//go:build linux && race

package e2e

// raceEnabled says that the tests, and so the binary under test, run under the race detector.
const raceEnabled = true
