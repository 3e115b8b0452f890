// Package servertest breaks a daemon on purpose and checks what is left of its
// promises. It has what such a test needs, each in a file of its own:
//
//   - [Daemon]: a real keyholdd process in a world of its own, whose PKCS#11
//     library is package fault's, so that the test can make it misbehave while
//     the daemon runs (daemon.go);
//   - [Ledger]: what the daemon has acknowledged, as its clients saw it
//     (ledger.go);
//   - [Load]: clients that do a bit of everything, check each answer against
//     what they know, and keep the ledger (load.go);
//   - [Checker]: verifies after a fault that no promise was broken (check.go,
//     leftovers.go).
//
// The matrix of faults is in its tests, and in docs/faults.md for people;
// `make soak` runs the same for as long as one likes. It is for tests alone: no
// program imports it.
package servertest
