// Package filecrypt encrypts data of any size, in constant memory, under a key
// that stays in its token, unless it was created EXPORTABLE: envelope encryption.
// [NewWriter] gets a data key from the service, writes a header with the
// encrypted copy of it, and encrypts what is written with the data key;
// [NewReader] lets the service open the data key, and decrypts.
//
// The encryption is Tink's streaming AEAD AES-GCM-HKDF in segments of 64 KiB,
// and the header is its associated data. docs/file-format.md describes the
// format byte for byte, with a test vector.
//
// What it promises: a Reader returns no byte that was not authenticated
// before, in its place; it returns io.EOF only after what the Writer's Close
// wrote, so that a shortened, lengthened or reordered file is told from a
// whole one; each file has a data key of its own; a header cannot be changed,
// moved to another file, or make a Reader use much memory.
//
// What it does not do: hide how long the data is, or its encryption context,
// which stands in the header for everyone to read. It says nothing about who
// wrote a file: whoever may use the key for encryption could have. A Reader
// learns that a file is cut off at its end only; who cannot take back what was
// read before must wait for io.EOF. The data key stays in the memory of the
// process until that is reused: Tink keeps a copy that nobody can clear.
package filecrypt
