// Package fault makes a PKCS#11 library that misbehaves on request: it wraps a real one, and a test tells it which calls shall fail, hang, be
// slow, tell wrong lengths or kill the process, when all sessions or the login shall be lost, whether there is a token at all, how many sessions
// there may be, and what the token's flags say. It also watches for what no user of PKCS#11 may do: two threads on one session, and C_Finalize
// while another call is inside.
//
// It is a C library, compiled with $CC (or cc) into a temporary folder. Its control block is a file beside it that both sides map: so it works in
// the process of the test as in any other that loads it, such as a daemon whose configuration names [Module.Path] as its module. 64-bit unix only.
package fault

import (
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

//go:embed module/fault.c
var source []byte

// Module is one misbehaving library. Its methods may be called at any time from any goroutine.
type Module struct {
	Path string // of the library, to be loaded instead of the real one
	ctl  *control
}

// The layout of module/fault.c.
type control struct {
	faults                         [functions]entry
	reportMax, enforceMax          int64
	setFlags, clearFlags           int64
	open, inside, shared, finalize int64
	rwCrypto, openRW               int64
	act, removed                   int64
}

type entry struct {
	mode, rv, skip, times, slot, delay, calls, hanging, out, outLen int64
}

const functions = 68

// The modes of an entry.
const (
	modeNone = iota
	modeFail
	modeFailAfter
	modeHang
	modeSlow
	modeLength
	modeKill
	modeKillAfter
)

// What the library does at its next call, before that.
const (
	actLose   = 1
	actForget = 2
)

// Length is how the length that a call returns is wrong.
type Length int

// The wrong lengths. Long is by one, and only for calls whose output has a buffer of its caller's choice: a list that is longer than the array it
// was asked into is memory that the caller never had.
const (
	Right Length = iota
	Long
	Short
	Zero
)

// numbers are the functions' places in CK_FUNCTION_LIST, for those that are wrapped.
func number(tb testing.TB, call string) int {
	tb.Helper()
	numbers := map[string]int{
		"C_Initialize": 0, "C_Finalize": 1, "C_GetInfo": 2, "C_GetSlotList": 4, "C_GetSlotInfo": 5, "C_GetTokenInfo": 6, "C_GetMechanismList": 7,
		"C_GetMechanismInfo": 8, "C_InitToken": 9, "C_InitPIN": 10, "C_OpenSession": 12, "C_CloseSession": 13, "C_CloseAllSessions": 14, "C_GetSessionInfo": 15, "C_Login": 18,
		"C_Logout": 19, "C_CreateObject": 20, "C_CopyObject": 21, "C_DestroyObject": 22, "C_GetAttributeValue": 24, "C_SetAttributeValue": 25,
		"C_FindObjectsInit": 26, "C_FindObjects": 27, "C_FindObjectsFinal": 28, "C_EncryptInit": 29, "C_Encrypt": 30, "C_DecryptInit": 33,
		"C_Decrypt": 34, "C_SignInit": 42, "C_Sign": 43, "C_GenerateKey": 58, "C_GenerateKeyPair": 59, "C_WrapKey": 60, "C_UnwrapKey": 61,
		"C_DeriveKey": 62, "C_GenerateRandom": 64,
	}
	n, ok := numbers[call]
	if !ok {
		tb.Fatalf("fault: call %q is not wrapped", call)
	}
	return n
}

// New compiles a library that wraps the real one at path. Each has its own copy of the real one, and so its own C_Initialize, sessions and
// logins, whatever else the process has loaded.
func New(tb testing.TB, path string) *Module {
	tb.Helper()
	dir := tb.TempDir()
	src, lib, own := filepath.Join(dir, "fault.c"), filepath.Join(dir, "fault.so"), filepath.Join(dir, "real.so")
	must := func(err error) {
		tb.Helper()
		if err != nil {
			tb.Fatalf("fault: %v", err)
		}
	}
	real, err := os.ReadFile(path)
	must(err)
	must(os.WriteFile(own, real, 0o700))
	must(os.WriteFile(src, source, 0o600))
	must(os.WriteFile(lib+".real", []byte(own), 0o600))
	size := int(unsafe.Sizeof(control{}))
	must(os.WriteFile(lib+".ctl", make([]byte, size), 0o600))
	compiler := os.Getenv("CC")
	if compiler == "" {
		compiler = "cc"
	}
	args := []string{"-std=c11", "-O1", "-Wall", "-Werror", "-Wno-unused-result", "-shared", "-fPIC", "-o", lib, src, "-ldl", "-lpthread"}
	if out, err := exec.Command(compiler, args...).CombinedOutput(); err != nil {
		tb.Fatalf("fault: %s: %v\n%s", compiler, err, out)
	}
	f, err := os.OpenFile(lib+".ctl", os.O_RDWR, 0)
	must(err)
	defer f.Close()
	mem, err := syscall.Mmap(int(f.Fd()), 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	must(err)
	// The mapping stays: a call of the library may outlive the test.
	m := &Module{Path: lib, ctl: (*control)(unsafe.Pointer(unsafe.SliceData(mem)))}
	for i := range m.ctl.faults {
		m.ctl.faults[i].slot = -1
	}
	tb.Cleanup(m.ClearAll) // so that nothing hangs on
	return m
}

// Fault is what a call shall do instead of its work.
type Fault struct {
	RV    uint          // fail with this return value
	After bool          // do the work first, and fail then: "failed but persisted"
	Hang  bool          // hang until cleared, then do the work
	Slow  time.Duration // take this much longer
	Len   Length        // do the work, and tell a wrong length of what came out
	Kill  bool          // kill the process (SIGKILL); with After, when the work is done
	Skip  int           // let so many calls pass first
	Times int           // last for so many calls; 0 is for ever
	Slot  *uint         // only calls on sessions of this slot
}

// Set makes a call misbehave, in place of what was set for it before.
func (m *Module) Set(tb testing.TB, call string, f Fault) {
	tb.Helper()
	e := &m.ctl.faults[number(tb, call)]
	mode, rv, times, slot := int64(modeFail), int64(f.RV), int64(-1), int64(-1)
	switch {
	case f.Len != Right:
		mode, rv = modeLength, int64(f.Len)
		checkLength(tb, call, f.Len)
	case f.Kill && f.After:
		mode = modeKillAfter
	case f.Kill:
		mode = modeKill
	case f.Hang:
		mode = modeHang
	case f.Slow > 0:
		mode = modeSlow
	case f.After:
		mode = modeFailAfter
	}
	if f.Times > 0 {
		times = int64(f.Times)
	}
	if f.Slot != nil {
		slot = int64(*f.Slot)
	}
	atomic.StoreInt64(&e.mode, modeNone)
	atomic.StoreInt64(&e.rv, rv)
	atomic.StoreInt64(&e.skip, int64(f.Skip))
	atomic.StoreInt64(&e.times, times)
	atomic.StoreInt64(&e.slot, slot)
	atomic.StoreInt64(&e.delay, int64(f.Slow))
	atomic.StoreInt64(&e.mode, mode)
}

// checkLength refuses what the library does not do.
func checkLength(tb testing.TB, call string, l Length) {
	tb.Helper()
	switch call {
	case "C_Encrypt", "C_Decrypt", "C_Sign", "C_WrapKey", "C_GetAttributeValue":
	case "C_GetSlotList", "C_GetMechanismList", "C_FindObjects":
		if l == Long {
			tb.Fatalf("fault: %s cannot return more than it was asked for", call)
		}
	default:
		tb.Fatalf("fault: %s returns no length", call)
	}
}

// Fail makes the next n calls fail, or all until cleared when n is 0.
func (m *Module) Fail(tb testing.TB, call string, rv uint, n int) {
	tb.Helper()
	m.Set(tb, call, Fault{RV: rv, Times: n})
}

// Hang makes a call hang until cleared.
func (m *Module) Hang(tb testing.TB, call string) {
	tb.Helper()
	m.Set(tb, call, Fault{Hang: true})
}

// Clear makes a call work again, and releases what hangs in it.
func (m *Module) Clear(tb testing.TB, call string) {
	tb.Helper()
	atomic.StoreInt64(&m.ctl.faults[number(tb, call)].mode, modeNone)
}

// ClearAll makes every call work again, puts the token back, and takes LimitSessions and TokenFlags back.
func (m *Module) ClearAll() {
	for i := range m.ctl.faults {
		atomic.StoreInt64(&m.ctl.faults[i].mode, modeNone)
	}
	atomic.StoreInt64(&m.ctl.act, 0)
	m.LimitSessions(0, 0)
	m.TokenFlags(0, 0)
	m.Return()
}

// LoseSessions ends all sessions of all tokens, and with them the logins, before the next call of the library: the user's handles are stale then.
func (m *Module) LoseSessions() { atomic.StoreInt64(&m.ctl.act, actLose) }

// ForgetLogin logs out of all tokens before the next call of the library. Sessions stay.
func (m *Module) ForgetLogin() { atomic.StoreInt64(&m.ctl.act, actForget) }

// Remove takes the tokens out of their slots: sessions are lost, calls on them return CKR_DEVICE_REMOVED, calls on slots CKR_TOKEN_NOT_PRESENT,
// and no slot has a token, until Return.
func (m *Module) Remove() {
	atomic.StoreInt64(&m.ctl.act, actLose)
	atomic.StoreInt64(&m.ctl.removed, 1)
}

// Return puts the tokens back.
func (m *Module) Return() { atomic.StoreInt64(&m.ctl.removed, 0) }

// Pending tells whether what LoseSessions, ForgetLogin or Remove do has not been done yet, because there was no call since.
func (m *Module) Pending() bool { return atomic.LoadInt64(&m.ctl.act) != 0 }

// ProcessDied tells that the process that had the library has ended without C_Finalize: its sessions do not count any more. Only for when no
// other process has it loaded.
func (m *Module) ProcessDied() {
	for _, n := range []*int64{&m.ctl.open, &m.ctl.openRW, &m.ctl.inside, &m.ctl.act} {
		atomic.StoreInt64(n, 0)
	}
	for i := range m.ctl.faults {
		atomic.StoreInt64(&m.ctl.faults[i].hanging, 0)
	}
}

// Calls returns how often a function was called, failed calls included.
func (m *Module) Calls(tb testing.TB, call string) int {
	tb.Helper()
	return int(atomic.LoadInt64(&m.ctl.faults[number(tb, call)].calls))
}

// Hanging returns how many calls of a function hang now.
func (m *Module) Hanging(tb testing.TB, call string) int {
	tb.Helper()
	return int(atomic.LoadInt64(&m.ctl.faults[number(tb, call)].hanging))
}

// Output returns the buffer into which a call of this process that hangs now will put what comes out of it, so that a test sees what becomes of
// that afterwards.
func (m *Module) Output(tb testing.TB, call string) []byte {
	tb.Helper()
	e := &m.ctl.faults[number(tb, call)]
	if atomic.LoadInt64(&e.hanging) != 1 {
		tb.Fatalf("fault: not one call of %s hangs", call)
	}
	out, n := atomic.LoadInt64(&e.out), atomic.LoadInt64(&e.outLen)
	if out == 0 {
		tb.Fatalf("fault: the call of %s that hangs has no buffer", call)
	}
	// The address is that of a Go object only as long as the call has it, and from here on it is one more reference.
	return unsafe.Slice(*(**byte)(unsafe.Pointer(&out)), int(n))
}

// Sessions returns how many sessions are open, and how many of these are RW.
func (m *Module) Sessions() (all, rw int) {
	return int(atomic.LoadInt64(&m.ctl.open)), int(atomic.LoadInt64(&m.ctl.openRW))
}

// LimitSessions makes tokens report a limit (0: the real one, ^uint(0): unknown) and the library keep one over all tokens (0: none).
func (m *Module) LimitSessions(report uint, enforce int) {
	atomic.StoreInt64(&m.ctl.reportMax, int64(report))
	atomic.StoreInt64(&m.ctl.enforceMax, int64(enforce))
}

// TokenFlags sets and clears flags in what C_GetTokenInfo says.
func (m *Module) TokenFlags(set, clear uint) {
	atomic.StoreInt64(&m.ctl.setFlags, int64(set))
	atomic.StoreInt64(&m.ctl.clearFlags, int64(clear))
}

// Violations says what the library's user did that nobody may do: empty when all was well.
func (m *Module) Violations() []string {
	var v []string
	for _, c := range []struct {
		n    *int64
		what string
	}{
		{&m.ctl.shared, "calls on a session that another thread was in"},
		{&m.ctl.finalize, "C_Finalize while another call was inside"},
	} {
		if n := atomic.LoadInt64(c.n); n > 0 {
			v = append(v, fmt.Sprintf("%d %s", n, c.what))
		}
	}
	return v
}

// CryptoOnRW returns how many cryptographic calls were made on RW sessions. The pairwise tests of new keys are.
func (m *Module) CryptoOnRW() int { return int(atomic.LoadInt64(&m.ctl.rwCrypto)) }
