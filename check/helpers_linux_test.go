package check

import (
	"os"
	"testing"
)

func descendantsOf(t *testing.T) []int {
	t.Helper()
	return descendants(os.Getpid())
}
