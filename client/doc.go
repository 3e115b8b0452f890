// Package client is the Go SDK: it talks to a Keyhold server over gRPC with
// mutual TLS. Every piece has an example that runs against the real daemon.
//
//   - [Dial] takes a [Config] and returns a [Client] with the services of
//     keyhold.v1 as typed clients. Calls are tried again, with backoff, where
//     that is safe and may help: [Retry] says when. [Hooks] and
//     [Config].StatsHandler show what happens, and never a message.
//   - [ErrorFrom] makes the exception's name, the fields at fault and the request
//     id readable from what a call returned.
//   - [Envelope] encrypts large texts locally with data keys of the service,
//     which [CacheConfig] lets it use again, up to limits. For files and streams
//     of any size there is package client/filecrypt.
//   - [Signer] and [Decrypter] are the interfaces of Go's crypto package, for TLS
//     servers and x509. Tink's is in package client/tinkaead.
//   - [Coalescer] sends concurrent calls together. It can stand for a Client's
//     Crypto in all of the above.
//
// What it promises: TLS 1.3 or nothing; the server's certificate is always
// checked; certificate files are read again at each handshake, so that
// short-lived certificates can be renewed under a running program; no call
// waits longer than its context's deadline, or [Config].Timeout if it has
// none.
//
// What it does not do: keep plaintext away from the memory of the process that
// asked for it. Data keys that are the package's own, and the buffers that
// requests are encoded in, are wiped when they are done with, and so are those
// that answers arrive in, in frames of more than 1 KiB. Shorter frames, TLS's
// buffers, Go's key schedules and what the caller holds are not. It ignores the
// proxy settings of the environment: the connection carries plaintext, and goes
// straight to Addr.
package client
