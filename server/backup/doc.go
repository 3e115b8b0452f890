// Package backup makes one consistent set of all that an installation cannot
// make again, and puts it back: the store, the audit journal, and the files of
// SoftHSM tokens. Other tokens are backed up with their vendor's tools; the set
// then says which keys they must hold.
//
// A backup is made beside the running daemon, which is not hindered. Its order
// makes it consistent:
//
//  1. the store, as of one moment;
//  2. the tokens. A key that the store knows was in its token before its record
//     said that it is there, so each key of 1 is in 2, unless it was destroyed in
//     between, as it was due;
//  3. the journal, up to a point that is known to be on the disk. Each change is
//     on the record before it is made (docs/decisions/0008), so that the journal
//     knows of all that is in 1 and 2.
//
// What is in 2 and 3 beyond 1 looks like what a crash leaves: objects without
// records, intents whose key is not there. Before it is
// written, the store is checked, the journal verified, the copied tokens are opened
// and their objects compared with the records. An archive in a file is read back
// before it gets its name; what goes to a pipe is not.
//
// Restore puts all of it in place or nothing: it stages everything on the target
// file systems, verifies it, opens the tokens, and moves it with a mark in the
// data folder, which the daemon refuses to start on. What a restored store cannot
// know is how often keys were used since; Restore counts that in advance, so that
// no key version encrypts more than 2^32 times. Nor can it know which deletions were
// cancelled since: none is carried out before an operator has confirmed the clock. Nor
// which access keys were deactivated or deleted since: all are inactive.
// Restore writes an event of its own to the journal, from which on the journal is
// another one than that which went on without the backup.
//
// The archive is a plain tar file, in which manifest.json, the first entry, names
// all that follows with size and SHA-256. Nothing in it is encrypted that was not
// before, and it proves nothing against someone who can write it but what the
// journal's chain does: encrypt and sign it with a tool made for that.
package backup
