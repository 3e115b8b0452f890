package servertest

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/keyhold/keyhold/hsm/hsmtest/fault"
)

// ckrDeviceError and its like are return values of PKCS#11 v2.40.
const (
	ckrFunctionFailed = 0x06
	ckrDeviceError    = 0x30

	ckfUserPINLocked = 0x40000 // CK_TOKEN_INFO.flags
)

// op returns an operation by its name.
func op(name string) operation {
	for _, o := range operations() {
		if o.name == name {
			return o
		}
	}
	panic("no operation " + name)
}

// tokenRows are faults of the token and its library.
func tokenRows() []row {
	away := []codes.Code{codes.Unavailable, codes.DeadlineExceeded}
	return []row{
		{"token-removed", away, func(t *testing.T, f *fixture, r row) {
			for range 2 {
				f.d.Module.Remove()
				f.d.WaitNotReady(t, "token")
				for _, op := range operations() {
					f.refused(t, op, callDeadline, codes.Unavailable)
				}
				f.d.Module.Return()
				f.serves(t, r.name, operations()...)
			}
		}},
		{"sessions-lost", away, func(t *testing.T, f *fixture, r row) {
			for range 5 {
				f.d.Module.LoseSessions()
				f.happened(t)
				f.serves(t, r.name, operations()...)
			}
		}},
		{"login-forgotten", away, func(t *testing.T, f *fixture, r row) {
			for range 5 {
				f.d.Module.ForgetLogin()
				f.happened(t)
				f.serves(t, r.name, operations()...)
			}
		}},
		{"hang-in-initialize", away, func(t *testing.T, f *fixture, r row) {
			f.d.Module.Hang(t, "C_Initialize")
			f.d.Module.Remove()
			f.hangs(t, "C_Initialize")
			f.refused(t, op("encrypt"), callDeadline, codes.Unavailable)
			f.refused(t, op("generate key"), callDeadline, codes.Unavailable)
			f.d.Module.ClearAll()
			f.serves(t, r.name, operations()...)
		}},
		{"hang-in-find", away, func(t *testing.T, f *fixture, r row) {
			// Objects are searched for when a connection is made.
			f.d.Module.Hang(t, "C_FindObjects")
			f.d.Module.ForgetLogin()
			f.hangs(t, "C_FindObjects")
			f.refused(t, op("encrypt"), hurry, codes.DeadlineExceeded, codes.Unavailable)
			f.d.Module.ClearAll()
			f.serves(t, r.name, operations()...)
		}},
		{"hang-in-login", away, func(t *testing.T, f *fixture, r row) {
			f.d.Module.Hang(t, "C_Login")
			f.d.Module.ForgetLogin()
			f.hangs(t, "C_Login")
			f.refused(t, op("sign"), hurry, codes.DeadlineExceeded, codes.Unavailable)
			f.d.Module.Clear(t, "C_Login")
			f.serves(t, r.name, operations()...)
		}},
		{"slow", away, func(t *testing.T, f *fixture, r row) {
			f.d.Module.Set(t, "C_Encrypt", fault.Fault{Slow: 300 * time.Millisecond})
			if err := f.try(op("encrypt"), callDeadline); err != nil {
				t.Errorf("encrypt with a slow token: %v", err)
			}
			f.refused(t, op("encrypt"), 100*time.Millisecond, codes.DeadlineExceeded)
			f.d.Module.ClearAll()
			f.serves(t, r.name, operations()...)
		}},
		{"cannot-be-finalized", away, func(t *testing.T, f *fixture, r row) {
			tried := f.d.Module.Calls(t, "C_Finalize")
			f.d.Module.Fail(t, "C_Finalize", ckrFunctionFailed, 0)
			f.d.Module.Remove()
			f.d.until(t, "C_Finalize was tried", func() error {
				if f.d.Module.Calls(t, "C_Finalize") == tried {
					return errNotYet
				}
				return nil
			})
			f.refused(t, op("encrypt"), callDeadline, codes.Unavailable)
			f.d.Module.Return()
			f.serves(t, r.name, operations()...)
			f.d.Module.ClearAll()
		}},
		{"session-limit-1", away, func(t *testing.T, f *fixture, r row) { f.limited(t, r, 1, false) }},
		{"session-limit-2", away, func(t *testing.T, f *fixture, r row) { f.limited(t, r, 2, false) }},
		{"session-limit-16", away, func(t *testing.T, f *fixture, r row) { f.limited(t, r, 16, true) }},
		{"pin-locked", away, func(t *testing.T, f *fixture, r row) {
			f.d.Module.TokenFlags(ckfUserPINLocked, 0)
			logins := f.d.Module.Calls(t, "C_Login")
			f.d.Module.ForgetLogin()
			f.d.WaitNotReady(t, "locked")
			f.refused(t, op("encrypt"), callDeadline, codes.Unavailable)
			if n := f.d.Module.Calls(t, "C_Login") - logins; n != 0 {
				t.Errorf("%d logins with a PIN that is locked", n)
			}
			f.d.Module.ClearAll()
			f.serves(t, r.name, operations()...)
		}},
	}
}

// longRows are faults of the token that take their time.
func longRows() []row {
	away := []codes.Code{codes.Unavailable, codes.DeadlineExceeded}
	return []row{
		{"device-error-for-long", away, func(t *testing.T, f *fixture, r row) {
			calls := []string{"C_EncryptInit", "C_DecryptInit", "C_SignInit", "C_OpenSession", "C_FindObjectsInit", "C_GetSessionInfo", "C_GenerateKey"}
			for _, c := range calls {
				f.d.Module.Fail(t, c, ckrDeviceError, 0)
			}
			f.d.WaitNotReady(t, "CKR_DEVICE_ERROR")
			// Until the attempts to heal are as far apart as they get.
			tries := f.d.Module.Calls(t, "C_Initialize")
			f.d.until(t, "the module is initialised over and over", func() error {
				if f.d.Module.Calls(t, "C_Initialize") < tries+3 {
					return errNotYet
				}
				return nil
			})
			f.refused(t, op("encrypt"), callDeadline, codes.Unavailable)
			f.d.Module.ClearAll()
			f.serves(t, r.name, operations()...)
		}},
		{"connecting-fails", away, func(t *testing.T, f *fixture, r row) {
			for _, call := range []string{
				"C_GetSlotList", "C_GetTokenInfo", "C_OpenSession", "C_GetSessionInfo", "C_Login", "C_FindObjectsInit", "C_FindObjects",
				"C_GetAttributeValue", "C_CloseSession",
			} {
				f.d.Module.Fail(t, call, ckrDeviceError, 0)
				before := f.d.Module.Calls(t, call)
				f.d.Module.LoseSessions()
				f.d.until(t, call+" failed", func() error {
					if f.d.Module.Calls(t, call) == before {
						return errNotYet
					}
					return nil
				})
				f.d.Module.ClearAll()
				f.serves(t, r.name, operations()...)
			}
		}},
		{"hang-in-everything", away, func(t *testing.T, f *fixture, r row) {
			calls := []string{"C_Encrypt", "C_Decrypt", "C_Sign", "C_GenerateRandom", "C_FindObjectsInit", "C_GetSessionInfo"}
			for _, c := range calls {
				f.d.Module.Hang(t, c)
			}
			f.d.WaitNotReady(t, "token")
			for _, op := range operations()[:4] {
				f.refused(t, op, hurry, away...)
			}
			f.d.Module.ClearAll()
			f.serves(t, r.name, operations()...)
		}},
	}
}

// limited lets the token have so few sessions from its next connection on.
func (f *fixture) limited(t *testing.T, r row, most int, enough bool) {
	t.Helper()
	f.d.Module.LimitSessions(0, most) // the token does not tell, and refuses
	f.d.Module.LoseSessions()
	f.happened(t)
	if enough {
		f.serves(t, r.name, operations()...)
		if open, _ := f.d.Module.Sessions(); open > most {
			t.Errorf("%d sessions are open, of %d", open, most)
		}
	} else {
		f.d.WaitNotReady(t, "no session left")
		f.refused(t, op("encrypt"), callDeadline, codes.Unavailable)
		f.refused(t, op("generate key"), callDeadline, codes.Unavailable)
	}
	f.d.Module.LimitSessions(0, 0)
	f.serves(t, r.name, operations()...)
}

// happened waits until the module has done what was asked of it behind the
// daemon's back.
func (f *fixture) happened(t *testing.T) {
	t.Helper()
	f.d.until(t, "it happened", func() error {
		if f.d.Module.Pending() {
			return errNotYet
		}
		return nil
	})
}

// hangs waits until a call hangs in the module.
func (f *fixture) hangs(t *testing.T, call string) {
	t.Helper()
	f.d.until(t, call+" hangs", func() error {
		if f.d.Module.Hanging(t, call) == 0 {
			return errNotYet
		}
		return nil
	})
}
