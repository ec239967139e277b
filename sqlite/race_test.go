//go:build race

package sqlite

// raced says that this is a race build, in which the translated C of SQLite takes about twenty times as long: tests that
// are a matter of quantity then do less.
const raced = true
