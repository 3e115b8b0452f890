// Package client talks to a Keyhold server over gRPC with mutual TLS.
//
// [Dial] takes a [Config] and returns a [Client] with the two services of
// keyhold.v1 as typed clients; its example seals and opens a secret.
//
// What it promises: TLS 1.3 or nothing; the server's certificate is always
// checked; certificate files are read again at each handshake, so that
// short-lived certificates can be renewed under a running program; no call
// waits longer than its context's deadline, or [Config].Timeout if it has
// none. [ErrorFrom] makes the exception's name, the fields at fault and the
// request id readable from what a call returned. Calls are tried again, with
// backoff, where that is safe and may help: [Retry] says when. [Hooks] and
// [Config].StatsHandler show what happens, and never a message.
//
// What it does not do: keep plaintext away from the memory of the process that
// asked for it. It ignores the proxy settings of
// the environment: the connection carries plaintext, and goes straight to
// Addr.
package client
