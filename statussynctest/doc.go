// Package statussynctest is the conformance kit: one suite per contract of the root package, run against every
// implementation, and the parts that tests of other rooms need.
//
//   - Journal and JournalRetention are the suites of statussync.Journal.
//   - MemoryJournal (NewJournal) is an in-memory Journal that passes them, with hooks that make it fail, hang or slow.
//   - Recorder reads a Subscription like a careful client and notes every broken promise: order, versions, gaps,
//     snapshots, repeats.
//
// It is for tests: nothing in it is meant to run in a service.
package statussynctest
