package hsm

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/miekg/pkcs11"
)

func TestPINFile(t *testing.T) {
	dir := t.TempDir()
	write := func(content string, mode os.FileMode) PINSource {
		path := filepath.Join(dir, "pin")
		_ = os.Remove(path)
		check(t, os.WriteFile(path, []byte(content), 0o600))
		check(t, os.Chmod(path, mode))
		return PINFile(path)
	}
	long := strings.Repeat("9", maxPINBytes)
	for _, c := range []struct {
		name, content string
		mode          os.FileMode
		want, err     string
	}{
		{"plain", "zq7k", 0o600, "zq7k", ""},
		{"read-only", "zq7k", 0o400, "zq7k", ""},
		{"line end", "zq7k\n", 0o600, "zq7k", ""},
		{"DOS line end", "zq7k\r\n", 0o600, "zq7k", ""},
		{"spaces belong to it", " zq 7k \n", 0o600, " zq 7k ", ""},
		{"longest", long + "\r\n", 0o600, long, ""},
		{"too long", long + "9", 0o600, "", "longer than 512 bytes"},
		{"far too long", long + long, 0o600, "", "longer than 512 bytes"},
		{"empty", "", 0o600, "", "is empty"},
		{"only a line end", "\n", 0o600, "", "is empty"},
		{"two lines", "zq7k\n5678\n", 0o600, "", "more than one line"},
		{"two line ends", "zq7k\n\n", 0o600, "", "more than one line"},
		{"zero byte", "zq\x007k", 0o600, "", "more than one line"},
		{"group may read", "zq7k", 0o640, "", "chmod 0600"},
		{"others may read", "zq7k", 0o604, "", "chmod 0600"},
		{"others may write", "zq7k", 0o602, "", "chmod 0600"},
	} {
		got, err := write(c.content, c.mode).Read()
		if string(got) != c.want || (err == nil) != (c.err == "") || (err != nil && !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: got %q, %v; want %q, %q", c.name, got, err, c.want, c.err)
		}
		if err != nil && (strings.Contains(err.Error(), "zq7k") || strings.Contains(err.Error(), "99999")) {
			t.Errorf("%s: the error tells the PIN: %v", c.name, err)
		}
	}
	if _, err := PINFile(dir).Read(); err == nil {
		t.Error("a folder was read")
	}
	fifo := filepath.Join(dir, "fifo")
	check(t, syscall.Mkfifo(fifo, 0o600))
	if _, err := PINFile(fifo).Read(); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("FIFO: %v", err)
	}
	_, err := PINFile(filepath.Join(dir, "none")).Read()
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func TestPINEnvAndCredential(t *testing.T) {
	t.Setenv("TEST_PIN", "1234")
	if got, err := PINEnv("TEST_PIN").Read(); err != nil || string(got) != "1234" {
		t.Errorf("variable: %q, %v", got, err)
	}
	if _, err := PINEnv("TEST_PIN_NONE").Read(); err == nil {
		t.Error("a variable that is not set was read")
	}
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	if _, err := PINCredential("pin").Read(); err == nil || !strings.Contains(err.Error(), "LoadCredential=pin") {
		t.Errorf("no credentials: %v", err)
	}
	dir := t.TempDir()
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	check(t, os.WriteFile(filepath.Join(dir, "pin"), []byte("5678\n"), 0o440)) // as systemd does
	if got, err := PINCredential("pin").Read(); err != nil || string(got) != "5678" {
		t.Errorf("credential: %q, %v", got, err)
	}
	check(t, os.Chmod(filepath.Join(dir, "pin"), 0o444))
	if _, err := PINCredential("pin").Read(); err == nil {
		t.Error("a credential that others may read was read")
	}
	for _, p := range []PINSource{{}, PINFile(""), PINFile("pin"), PINEnv(""), PINEnv("A=B"), PINCredential("../pin"), PINCredential(".."), PINCredential("a/b"), PINFile("/a\x00b")} {
		if _, err := p.Read(); err == nil {
			t.Errorf("%s was read", p)
		}
	}
}

func FuzzPINFile(f *testing.F) {
	for _, s := range []string{"", "1234", "1234\n", "12\r\n", "\x00", "a\nb", strings.Repeat("x", maxPINBytes+1)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		pin, err := trimPIN(append([]byte(nil), content...), "test")
		if err != nil {
			return
		}
		if len(pin) == 0 || len(pin) > maxPINBytes || strings.ContainsAny(string(pin), "\x00\r\n") {
			t.Fatalf("accepted %q", pin)
		}
		if rest := strings.TrimPrefix(string(content), string(pin)); rest != "" && rest != "\n" && rest != "\r\n" {
			t.Fatalf("cut %q", rest)
		}
	})
}

// TestWrongPIN: a wrong PIN is tried once and never again, the token says so, a corrected source heals.
func TestWrongPIN(t *testing.T) {
	w := newWorld(t, true)
	cfg := w.token("alpha")
	cfg.ProbeCache = w.probes
	pin := w.pinFile("alpha")
	check(t, os.WriteFile(pin, []byte("wrong\n"), 0o600))
	logins := w.fault.Calls(t, "C_Login")
	tried := func() int { return w.fault.Calls(t, "C_Login") - logins }
	tok := w.open(cfg)
	until(t, "it says so", func() bool { return strings.Contains(tok.Status().Reason, "PIN rejected; not tried again") })
	if r := tok.Ready().Error(); strings.Contains(r, "wrong") || !strings.Contains(r, pin) || !strings.Contains(r, "CKR_PIN_INCORRECT") {
		t.Errorf("reason: %s", r)
	}
	// Attempts to connect go on; each reads the flags and the source, none tries the PIN.
	looked := w.fault.Calls(t, "C_GetSessionInfo")
	until(t, "it looks again", func() bool { return w.fault.Calls(t, "C_GetSessionInfo") > looked+3 })
	tok.Reload()
	looked = w.fault.Calls(t, "C_GetSessionInfo")
	until(t, "it looks again", func() bool { return w.fault.Calls(t, "C_GetSessionInfo") > looked+2 })
	if n := tried(); n != 1 {
		t.Fatalf("the wrong PIN was tried %d times", n)
	}
	if n := w.fault.Calls(t, "C_Finalize"); n > 3 {
		t.Errorf("the module was finalized %d times because of a wrong PIN", n)
	}
	check(t, os.WriteFile(pin, []byte(testPIN+"\n"), 0o600))
	check(t, tok.WaitReady(ctx(t)))
	if n := tried(); n != 2 {
		t.Errorf("%d logins, want 2", n)
	}
	works(t, aesKey(t, tok, "one"))
}

// TestRejectedPINAfterOtherLogin: somebody else logged in with the same PIN, so it was not the PIN: the token took its flag back.
func TestPINGuard(t *testing.T) {
	source := PINFile("/pin")
	cause := &Error{Call: "C_Login", RV: pkcs11.CKR_PIN_INCORRECT}
	low := uint(pkcs11.CKF_USER_PIN_COUNT_LOW)
	rejected := func(flags uint) *pinGuard {
		g := newPINGuard()
		check(t, g.allow([]byte("old"), 0, source))
		g.reject([]byte("old"), flags)
		wantErr(t, "refusal", g.refusal(source, cause), errPINRejected)
		wantErr(t, "same PIN", g.allow([]byte("old"), flags, source), errPINRejected)
		return g
	}
	t.Run("new PIN must stay", func(t *testing.T) {
		g := rejected(low)
		wantErr(t, "seen once", g.allow([]byte("n"), low, source), errPINRejected)
		wantErr(t, "changed again", g.allow([]byte("ne"), low, source), errPINRejected)
		check(t, g.allow([]byte("ne"), low, source))
	})
	t.Run("reload trusts the source", func(t *testing.T) {
		g := rejected(low)
		g.reload()
		wantErr(t, "old PIN", g.allow([]byte("old"), low, source), errPINRejected)
		check(t, g.allow([]byte("new"), low, source))
		g.reject([]byte("new"), low)
		wantErr(t, "trust is used up", g.allow([]byte("third"), low, source), errPINRejected)
	})
	t.Run("both wrong PINs are remembered", func(t *testing.T) {
		g := rejected(low)
		g.reject([]byte("new"), low)
		g.reload()
		wantErr(t, "first", g.allow([]byte("old"), low, source), errPINRejected)
		wantErr(t, "second", g.allow([]byte("new"), low, source), errPINRejected)
	})
	t.Run("flag taken back", func(t *testing.T) {
		check(t, rejected(low).allow([]byte("old"), 0, source))
	})
	t.Run("flag never raised", func(t *testing.T) {
		wantErr(t, "same PIN", rejected(0).allow([]byte("old"), 0, source), errPINRejected)
	})
	t.Run("accepted", func(t *testing.T) {
		g := rejected(low)
		g.accepted()
		check(t, g.allow([]byte("old"), low, source))
	})
}

// TestPINFlags: flags that forbid a login are obeyed before it.
func TestPINFlags(t *testing.T) {
	w := newWorld(t, true)
	cfg := w.token("alpha")
	for _, c := range []struct {
		name       string
		set, clear uint
		want       string
	}{
		{"locked", pkcs11.CKF_USER_PIN_LOCKED, 0, "is locked"},
		{"final try", pkcs11.CKF_USER_PIN_FINAL_TRY, 0, "one more try"},
		{"to be changed", pkcs11.CKF_USER_PIN_TO_BE_CHANGED, 0, "must be changed"},
		{"not initialised", 0, pkcs11.CKF_USER_PIN_INITIALIZED, "no user PIN"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.fault.TokenFlags(c.set, c.clear)
			logins := w.fault.Calls(t, "C_Login")
			tok := w.open(cfg)
			until(t, "it says so", func() bool { return strings.Contains(tok.Status().Reason, c.want) })
			looked := w.fault.Calls(t, "C_GetTokenInfo")
			until(t, "it looks again", func() bool { return w.fault.Calls(t, "C_GetTokenInfo") > looked+3 })
			if n := w.fault.Calls(t, "C_Login") - logins; n != 0 {
				t.Errorf("%d logins", n)
			}
			w.fault.TokenFlags(0, 0)
			check(t, tok.WaitReady(ctx(t)))
			check(t, tok.Close(ctx(t)))
		})
	}
	t.Run("count low is no obstacle", func(t *testing.T) {
		w.fault.TokenFlags(pkcs11.CKF_USER_PIN_COUNT_LOW, 0)
		tok := w.ready(cfg)
		if !tok.Status().PIN.CountLow {
			t.Error("Status does not tell")
		}
	})
}

func TestUnreadablePIN(t *testing.T) {
	w := newWorld(t, true)
	cfg := w.token("alpha")
	check(t, os.Chmod(w.pinFile("alpha"), 0o644))
	tok := w.open(cfg)
	until(t, "it says so", func() bool { return strings.Contains(tok.Status().Reason, "chmod 0600") })
	check(t, os.Chmod(w.pinFile("alpha"), 0o600))
	check(t, tok.WaitReady(ctx(t)))
}

// TestPINRefused: what counts as a wrong PIN, which is never tried again, and what as trouble, in which it is.
func TestPINRefused(t *testing.T) {
	const low, last, locked = pkcs11.CKF_USER_PIN_COUNT_LOW, pkcs11.CKF_USER_PIN_FINAL_TRY, pkcs11.CKF_USER_PIN_LOCKED
	for _, c := range []struct {
		rv, before, after uint
		want              bool
	}{
		{pkcs11.CKR_PIN_INCORRECT, 0, 0, true},
		{pkcs11.CKR_PIN_LOCKED, 0, locked, true},
		{0x80000042, 0, 0, true}, // a vendor's own
		{pkcs11.CKR_ARGUMENTS_BAD, 0, 0, true},
		{pkcs11.CKR_DEVICE_ERROR, 0, 0, false},
		{pkcs11.CKR_DEVICE_ERROR, low, low, false}, // somebody else's wrong PIN, before
		{pkcs11.CKR_DEVICE_ERROR, 0, low, true},    // the token counted a try
		{pkcs11.CKR_GENERAL_ERROR, low, low | last, true},
		{pkcs11.CKR_FUNCTION_FAILED, low | last, low | last | locked, true},
		{pkcs11.CKR_SESSION_HANDLE_INVALID, 0, 0, false},
		{pkcs11.CKR_USER_ANOTHER_ALREADY_LOGGED_IN, 0, 0, false},
	} {
		if got := pinRefused(callError("C_Login", pkcs11.Error(c.rv)), c.before, c.after); got != c.want {
			t.Errorf("%s, flags %#x to %#x: got %t", CodeName(c.rv), c.before, c.after, got)
		}
	}
}

// TestVendorsWrongPIN: a code that only the vendor knows is not answered by trying the PIN until the token locks.
func TestVendorsWrongPIN(t *testing.T) {
	w := newWorld(t, true)
	cfg := w.token("alpha")
	w.fault.Fail(t, "C_Login", 0x80000042, 1000)
	before := w.fault.Calls(t, "C_Login")
	tok := w.open(cfg)
	until(t, "it says so", func() bool { return strings.Contains(tok.Status().Reason, "not tried again") })
	for range 3 {
		at := w.fault.Calls(t, "C_OpenSession")
		tok.Reload()
		until(t, "it has connected again", func() bool { return w.fault.Calls(t, "C_OpenSession") > at })
	}
	if n := w.fault.Calls(t, "C_Login") - before; n != 1 {
		t.Errorf("the PIN was tried %d times", n)
	}
}
