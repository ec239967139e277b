package rollup

import (
	"errors"
	"fmt"
	"time"

	"github.com/DataDog/sketches-go/ddsketch"
	"github.com/DataDog/sketches-go/ddsketch/mapping"
	"github.com/DataDog/sketches-go/ddsketch/store"
)

const (
	// accuracy is how far a quantile may be from the exact one, relatively.
	accuracy = 0.01
	// maxBins bounds a sketch: 2048 bins of 2 % hold latencies that differ by a factor of 10^17. Only more than that
	// would be merged, from the low end.
	maxBins = 2048
	// maxSketchBytes bounds what is decoded: a bin takes at most 9 bytes and its index 10.
	maxSketchBytes = maxBins * 19
)

// Sketch is a distribution of latencies from which quantiles are known to 1 %. Sketches can be merged without loss. It
// belongs to one goroutine.
type Sketch struct{ s *ddsketch.DDSketch }

// newMapping never fails: the accuracy is between 0 and 1.
func newMapping() mapping.IndexMapping {
	m, err := mapping.NewLogarithmicMapping(accuracy)
	if err != nil {
		panic(err)
	}
	return m
}

// NewSketch returns an empty sketch.
func NewSketch() *Sketch {
	return &Sketch{ddsketch.NewDDSketch(newMapping(), store.NewCollapsingLowestDenseStore(maxBins), store.NewCollapsingLowestDenseStore(1))}
}

// Add counts a latency; one below zero counts as zero.
func (s *Sketch) Add(d time.Duration) {
	_ = s.s.Add(max(0, float64(d)/float64(time.Millisecond))) // fails only for what no duration is
}

// Clear empties the sketch and keeps its memory.
func (s *Sketch) Clear() { s.s.Clear() }

// Empty reports whether nothing was counted.
func (s *Sketch) Empty() bool { return s.s.IsEmpty() }

// Append appends the sketch's compact form, without its mapping, which is always the same; nothing where it is empty.
func (s *Sketch) Append(b []byte) []byte {
	if !s.Empty() {
		s.s.Encode(&b, true)
	}
	return b
}

// Merge adds what Append has written; empty is an empty sketch. After an error the sketch holds an unspecified part of
// it.
func (s *Sketch) Merge(b []byte) (err error) {
	if len(b) == 0 {
		return nil
	}
	if len(b) > maxSketchBytes {
		return fmt.Errorf("a sketch of %d bytes is too large", len(b))
	}
	before := s.s.GetCount()
	defer func() {
		if x := recover(); x != nil { // the library trusts its input
			err = fmt.Errorf("a sketch cannot be read: %v", x)
		}
	}()
	if err := s.s.DecodeAndMergeWith(b); err != nil {
		return fmt.Errorf("a sketch cannot be read: %w", err)
	}
	if after := s.s.GetCount(); !(after >= before) || after > 1e15 {
		return errors.New("a sketch cannot be read: its counts are none")
	}
	return nil
}

// Quantiles returns the latencies below which the parts qs (0 to 1) of all lie, the smaller of two at a boundary; zeros
// where the sketch is empty.
func (s *Sketch) Quantiles(qs ...float64) []time.Duration {
	out := make([]time.Duration, len(qs))
	if s.Empty() {
		return out
	}
	v, err := s.s.GetValuesAtQuantiles(qs)
	if err != nil {
		return out
	}
	for i := range v {
		out[i] = time.Duration(v[i] * float64(time.Millisecond))
	}
	return out
}
