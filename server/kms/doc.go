// Package kms is the core of Keyhold: what AWS KMS operations mean.
//
// It has one entry, Service.Do, and every request goes through the same
// numbered steps (pipeline.go), whatever door it came in by. An operation is
// one row of a table (operations.go): facts about it, and the function that
// acts. The proto's descriptors say the rest (permissions, plane, constraints,
// declared errors), so that an operation cannot forget a step.
//
// The core promises that no answer leaves before its audit record is durable,
// that no secret is in a record, an error or a log, that the data plane does
// not touch the database (but for leases of encryption counts, in large
// blocks), and that all errors it returns are *Error.
//
// It does not authenticate (the doors do), knows no protocol and no PKCS#11:
// key material is behind KeyStore, records are behind Store.
package kms
