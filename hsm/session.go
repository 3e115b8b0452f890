package hsm

import (
	"github.com/miekg/pkcs11"
)

// session is one PKCS#11 session. It is owned by exactly one worker goroutine, which lends it to one job at a time: two threads on one
// session are undefined (PKCS#11 v2.40, 2.6.7), and on SoftHSM a crash of the whole process.
//
// A job must not keep a session, and must not use it from another goroutine.
type session struct {
	p    *pkcs11.Ctx
	h    pkcs11.SessionHandle
	c    *conn
	rw   bool
	spot string // where in the job an operation was left behind; not empty: the worker closes the session
}

// token returns the token that the session belongs to.
func (s *session) token() *Token { return s.c.t }

// direct returns the library without the binding in between.
func (s *session) direct() *direct { return s.c.m.direct }

// fail reports the error of a call that began nothing: C_*Init itself, C_FindObjectsInit, C_GenerateKey, C_GetAttributeValue and so on. The
// session stays, unless the code says that it is dead.
func (s *session) fail(call string, err error) error { return callError(call, err) }

// initDone reports err, that came after a successful C_*Init. The session is closed after the job, since the operation may still be active
// in it (on some tokens for ever). It returns nil for nil and leaves the session alone then.
func (s *session) initDone(call string, err error) error {
	if err == nil {
		return nil
	}
	s.spot = call
	return callError(call, err)
}

// authFail reports that a ciphertext did not open: err is what the library said in call, after a successful C_DecryptInit. The answer is
// always ErrAuthentication, without detail. The session stays when the start-up probe proved that this token forgives it, because closing a
// session costs milliseconds on a full token and bad ciphertexts must not be a cheap attack; otherwise it is closed after the job.
//
// Codes that can only mean a dead session, login or device, or something else that is not the ciphertext's doing, are not authentication failures; they are reported as initDone does.
// CKR_GENERAL_ERROR and CKR_FUNCTION_FAILED are what SoftHSM says for a wrong tag: they count as authentication failures, and the canary is
// asked to look soon, since a broken token says the same.
func (s *session) authFail(call string, err error) error {
	if err == nil {
		return nil
	}
	rv, _ := codeOf(err)
	switch rv {
	case pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED, pkcs11.CKR_BUFFER_TOO_SMALL, ckrTokenResourceExceeded:
		return s.initDone(call, err) // of the key, of us, of the token: no ciphertext brings these about
	}
	switch classOf(rv) {
	case classSession, classLogin, classHandle, classModule, classPIN, classFull:
		return s.initDone(call, err)
	case classDevice:
		if rv != pkcs11.CKR_GENERAL_ERROR && rv != pkcs11.CKR_FUNCTION_FAILED {
			return s.initDone(call, err)
		}
		s.c.t.suspect()
	}
	if !s.c.t.survivesBadTag() {
		s.spot = call
	}
	return ErrAuthentication
}

// ckrTokenResourceExceeded is CKR_TOKEN_RESOURCE_EXCEEDED of PKCS#11 v3.1, which miekg/pkcs11 does not name.
const ckrTokenResourceExceeded = 0x201

// find returns the handles of at most limit objects that match the template. It ends the search whatever happens, since a session has one
// active operation.
//
// On SoftHSM finding is only safe under the lock of creating and destroying: call it in Token.manage or Token.search only, never in
// Token.use, but for session objects that the job itself made.
func (s *session) find(template []*pkcs11.Attribute, limit int) (_ []pkcs11.ObjectHandle, err error) {
	if err := s.p.FindObjectsInit(s.h, template); err != nil {
		return nil, s.fail("C_FindObjectsInit", err)
	}
	defer func() {
		if ferr := s.p.FindObjectsFinal(s.h); ferr != nil && err == nil {
			err = s.initDone("C_FindObjectsFinal", ferr)
		}
	}()
	var found []pkcs11.ObjectHandle
	for len(found) < limit {
		part, _, err := s.p.FindObjects(s.h, min(limit-len(found), findBatch))
		if err != nil {
			return nil, s.initDone("C_FindObjects", err)
		}
		if len(part) == 0 {
			break
		}
		found = append(found, part...)
	}
	return found, nil
}

// findBatch is how many handles one C_FindObjects asks for.
const findBatch = 1000
