// Package hsm uses the keys inside a PKCS#11 token: it keeps a token in service, and generates, uses and destroys keys that never leave it,
// but wrapped, and only when they were made for that.
//
// # What it promises
//
// A session has one owner: a worker goroutine, which runs one call at a time. Calls obey their context even when the library hangs; what
// hangs is counted and bounded, and past the bound calls are refused until it returns. No call waits behind more than MaxWaiters others.
//
// A token that goes away and comes back is found again without a restart. A dead session is replaced at once, and the call repeated. Where
// that does not help, the supervisor replaces the connection (sessions, login, handles), and as the last resort it initialises the module
// again, which interrupts all tokens of that module for a moment and is therefore rare. C_Finalize is never called while a call is inside the
// library. A canary key, sealed and opened every two seconds, tells whether the token is well; while it is not, calls fail at once with
// ErrUnavailable, and Ready says why.
//
// A PIN that the token rejected is not tried again. Flags that tell of a locked PIN, or of its last try, are obeyed before a login.
//
// Token objects are created, found and destroyed one at a time. On SoftHSM, which never syncs its files, what was created or destroyed is
// durable when the call returns. Several tokens, of one module or of several, work side by side.
//
// # What it does not
//
// It does not decide who may use a key, does not know key states, and does not count encryptions. It does not protect from somebody who
// holds the PIN and can load the library. A library that crashes takes the process down. Attribute changes of existing objects are not
// made durable; nothing here makes any. PINs are zeroed in our memory; what the library keeps of them is its own affair.
//
// It is the sole importer of github.com/miekg/pkcs11, with its test fixture hsmtest.
//
// PKCS#11: https://docs.oasis-open.org/pkcs11/pkcs11-base/v2.40/pkcs11-base-v2.40.html. URIs: RFC 7512.
package hsm
