// Package audit is Keyhold's tamper-evident audit log: the shape of an event
// and the journal that holds the events.
//
// # What it promises
//
//   - [Event.AppendJSON] encodes an event in CloudTrail's record schema, so that
//     parsers people already have can read it, whatever bytes a client put in
//     its strings.
//   - [Journal.Append] returns success only when every record it was given is as
//     durable as was asked. Requests that wait together share one write and one
//     sync (group commit). If the records cannot be written, it fails: an answer
//     that depends on its audit record must then not be given.
//   - Each record has a fixed place (sequence number, from 0, without gaps) and is
//     bound by a SHA-256 chain to all records before it. Record bytes are well
//     defined, so SHA-256(record i) can be leaf i of a Merkle log, and finished
//     segments never change again, so they can be archived.
//   - [Verify] names the place and the kind of the first fault; [Open] refuses a
//     journal whose acknowledged records are damaged or missing, and cuts off only
//     what nobody can have been told is durable.
//
// # What it does not do
//
//   - It is not the program's logger and does not rate-limit or aggregate; who
//     appends decides what is worth a record.
//   - It does not look into payloads. Callers keep secrets out of them.
//   - A hash chain proves that what follows a value kept elsewhere was not changed.
//     Against someone who can write the directory and whom no kept [Anchor]
//     contradicts it proves nothing; signed checkpoints are a layer above.
//   - It has one writer: a lock on the directory keeps others out.
//
// The format is specified byte for byte in docs/audit-format.md.
package audit
