package doctor

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyhold/keyhold/hsm"
	"github.com/keyhold/keyhold/hsm/hsmtest"
	"github.com/keyhold/keyhold/hsm/hsmtest/fault"
	"github.com/keyhold/keyhold/hsm/witness"
	"github.com/keyhold/keyhold/server"
	softhsmconfig "github.com/keyhold/keyhold/softhsm-config"
)

// Flags of CK_TOKEN_INFO (PKCS#11 v2.40, 3.2) and return values, which only
// package hsm may import from the binding.
const (
	flagPINInitialized = 0x8
	flagCountLow       = 0x10000
	flagFinalTry       = 0x20000
	flagLocked         = 0x40000
	flagToBeChanged    = 0x80000
	flagWriteProtected = 0x2

	rvDeviceError = 0x30
)

// TestLogins counts the logins that an examination costs: one when all is
// well and when the PIN is wrong, none when the flags warn.
func TestLogins(t *testing.T) {
	i := install(t, true)
	wrong := filepath.Join(i.dir, "wrong-pin")
	must(t, os.WriteFile(wrong, []byte("not the PIN\n"), 0o600))
	encryptions := i.fault.Calls(t, "C_EncryptInit")
	i.run()
	encryptions = i.fault.Calls(t, "C_EncryptInit") - encryptions
	for _, c := range []struct {
		name       string
		set, clear uint
		pin        string // instead of the right one's source
		break_     func()
		logins     int
		check      string
		status     Status
		words      string
	}{
		{name: "well", logins: 1, check: "login", status: OK},
		{name: "a wrong try before", set: flagCountLow, logins: 1, check: "pin-flags", status: Warn, words: "a wrong PIN was given"},
		{name: "locked", set: flagLocked, check: "pin-flags", status: Fail, words: "locked"},
		{name: "final try", set: flagFinalTry, check: "pin-flags", status: Fail, words: "one more wrong try"},
		{name: "to be changed", set: flagToBeChanged, check: "pin-flags", status: Fail, words: "must be changed"},
		{name: "no PIN", clear: flagPINInitialized, check: "pin-flags", status: Fail, words: "no user PIN"},
		{name: "write-protected", set: flagWriteProtected, logins: 1, check: "token", status: Fail, words: "write-protected"},
		{name: "PIN file missing", pin: "file:" + filepath.Join(i.dir, "absent"), check: "pin-source", status: Fail, words: "no such file"},
		{name: "login breaks", break_: func() { i.fault.Fail(t, "C_Login", rvDeviceError, 0) }, logins: 1, check: "login", status: Fail, words: "CKR_DEVICE_ERROR"},
		{name: "probes break", break_: func() { i.fault.Fail(t, "C_EncryptInit", rvDeviceError, 0) }, logins: 1, check: "login", status: Fail, words: "C_EncryptInit: CKR_DEVICE_ERROR"},
		// The last encryptions of an examination are two of the canary check, one of
		// each of the two listings of objects, which ask the canary as well, and one
		// of the seal key's.
		{name: "canary breaks", break_: func() {
			i.fault.Set(t, "C_EncryptInit", fault.Fault{RV: rvDeviceError, Skip: encryptions - 5})
		}, logins: 1, check: "canary", status: Fail, words: "CKR_DEVICE_ERROR"},
		// Last: the token counts a wrong try.
		{name: "wrong PIN", pin: "file:" + wrong, logins: 1, check: "login", status: Fail, words: "PIN rejected"},
	} {
		t.Run(c.name, func(t *testing.T) {
			i.t = t
			good := i.cfg.Tokens[0].PINSource
			defer i.configure(func(s *server.Config) { s.Tokens[0].PINSource = good })
			if c.pin != "" {
				i.configure(func(s *server.Config) { s.Tokens[0].PINSource = c.pin })
			}
			i.fault.TokenFlags(c.set, c.clear)
			defer i.fault.TokenFlags(0, 0)
			if c.break_ != nil {
				c.break_()
			}
			defer i.fault.ClearAll()
			before := i.fault.Calls(t, "C_Login")
			// No witness may be started where the login was not accepted.
			r := i.examine(witness.Child{Exe: filepath.Join(i.dir, "no-such-program")})
			if n := i.fault.Calls(t, "C_Login") - before; n != c.logins {
				t.Errorf("%d logins, want %d", n, c.logins)
			}
			want(t, r, c.check, c.status, c.words)
			if c.status == Fail && !r.Failed() {
				t.Error("the report did not fail")
			}
			if c.logins == 0 {
				for _, name := range []string{"login", "canary", "capabilities", "custody", "witness"} {
					want(t, r, name, Skipped, "")
				}
				want(t, r, "records-and-objects", Skipped, "not known")
			}
			if c.name == "wrong PIN" {
				want(t, r, "witness", Skipped, "the login failed")
			}
			if n, _ := i.fault.Sessions(); n != 0 {
				t.Errorf("%d sessions are left open", n)
			}
			for _, v := range i.fault.Violations() {
				t.Errorf("violation: %s", v)
			}
		})
	}
}

// TestHangingLibrary ends in time, and says what hangs.
func TestHangingLibrary(t *testing.T) {
	i := install(t, true)
	for _, c := range []struct{ call, check string }{
		{"C_GetSlotList", "module"},
		{"C_Login", "login"},
	} {
		t.Run(c.call, func(t *testing.T) {
			i.fault.Hang(t, c.call)
			r := Run(t.Context(), Options{ConfigFile: i.file, Timeout: 500 * time.Millisecond})
			want(t, r, c.check, Fail, "deadline exceeded")
			for _, k := range r.Checks {
				if k.Name == c.check && k.Remedy != libraryHangs {
					t.Errorf("remedy %q", k.Remedy)
				}
			}
			want(t, r, "store", OK, "")
			i.fault.ClearAll()
			for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
				if n, _ := i.fault.Sessions(); n == 0 && i.fault.Hanging(t, c.call) == 0 {
					break
				}
				if time.Now().After(deadline) {
					t.Fatal("what hung does not give its sessions back")
				}
			}
		})
	}
}

// TestTokenProblems has one problem at a time, with the token or its library.
func TestTokenProblems(t *testing.T) {
	i := install(t, false)
	pinFile, conf := i.fixture.PINFile, i.fixture.Conf
	text := filepath.Join(i.dir, "text.so")
	must(t, os.WriteFile(text, []byte("no library"), 0o600))
	loose := filepath.Join(i.dir, "loose.pin")
	must(t, os.WriteFile(loose, []byte("1234\n"), 0o644))
	must(t, os.Chmod(loose, 0o644))
	t.Setenv("KEYHOLD_TEST_PIN", readFile(t, pinFile))
	mode := func(path string, mode os.FileMode) func() func() {
		return func() func() {
			info, err := os.Stat(path)
			must(t, err)
			must(t, os.Chmod(path, mode))
			return func() { must(t, os.Chmod(path, info.Mode().Perm())) }
		}
	}
	for _, c := range []struct {
		name   string
		change func(*server.TokenConfig)
		do     func() (undo func())
		check  string
		status Status
		words  string
	}{
		{name: "no library", change: func(c *server.TokenConfig) { c.Module = "/nonexistent/lib.so" }, check: "module", status: Fail, words: "no such file"},
		{name: "no PKCS#11 library", change: func(c *server.TokenConfig) { c.Module = text }, check: "module", status: Fail, words: "could not be loaded"},
		{name: "library that others may change", do: mode(i.fixture.Module, 0o777), check: "module", status: Fail, words: "0777"},
		{name: "no such label", change: func(c *server.TokenConfig) { c.Label = "absent" }, check: "token", status: Fail, words: `no token with label "absent"`},
		{name: "no such serial number", change: func(c *server.TokenConfig) { c.Serial = "0" }, check: "token", status: Fail, words: "serial number 0"},
		{name: "PIN readable by others", change: func(c *server.TokenConfig) { c.PINSource = "file:" + loose }, check: "pin-source", status: Fail, words: "0644"},
		{name: "PIN in the environment", change: func(c *server.TokenConfig) { c.PINSource = "env:KEYHOLD_TEST_PIN" }, check: "pin-source", status: Warn, words: "inherited"},
		{name: "PIN not in the environment", change: func(c *server.TokenConfig) { c.PINSource = "env:KEYHOLD_TEST_NONE" }, check: "pin-source", status: Fail, words: "not set"},
		{name: "no SoftHSM configuration", change: func(c *server.TokenConfig) { c.Environment["SOFTHSM2_CONF"] = "/nonexistent.conf" }, check: "softhsm", status: Fail, words: "no such file"},
		{name: "another SoftHSM configuration around", do: func() func() { t.Setenv("SOFTHSM2_CONF", "/elsewhere.conf"); return func() {} }, check: "environment", status: Warn, words: "/elsewhere.conf"},
		{name: "SoftHSM configuration that others may change", do: mode(conf, 0o666), check: "softhsm", status: Fail, words: "0666"},
		{name: "tokens that others may change", do: mode(i.fixture.TokenDir, 0o777), check: "softhsm", status: Fail, words: "0777"},
		{name: "tokens that others may read", do: mode(i.fixture.TokenDir, 0o755), check: "softhsm", status: Warn, words: "0755"},
	} {
		t.Run(c.name, func(t *testing.T) {
			i.t = t
			saved := i.cfg.Tokens[0]
			saved.Environment = map[string]string{"SOFTHSM2_CONF": conf}
			t.Setenv("SOFTHSM2_CONF", conf)
			if c.do != nil {
				defer c.do()()
			}
			if c.change != nil {
				i.configure(func(s *server.Config) { c.change(&s.Tokens[0]) })
			}
			defer i.configure(func(s *server.Config) { s.Tokens[0] = saved })
			r := i.run()
			want(t, r, c.check, c.status, c.words)
		})
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return strings.TrimSpace(string(b))
}

// TestAmbiguousLabel never guesses which token is meant.
func TestAmbiguousLabel(t *testing.T) {
	f := hsmtest.New(t)
	// Keyhold's own tools refuse to make a second token of that label.
	other, err := softhsmconfig.Init(t.Context(), softhsmconfig.Options{Dir: t.TempDir(), Label: f.Label, Module: f.Module})
	must(t, err)
	entries, err := os.ReadDir(other.TokenDir)
	must(t, err)
	for _, e := range entries {
		must(t, os.Rename(filepath.Join(other.TokenDir, e.Name()), filepath.Join(f.TokenDir, e.Name())))
	}
	must(t, f.Use())
	r := Run(t.Context(), Options{Token: f.Config()})
	want(t, r, "token", Fail, "2 tokens with label")
	want(t, r, "login", Skipped, "not found")

	// The serial number tells them apart.
	info, err := hsm.InspectModule(t.Context(), f.Module)
	must(t, err)
	var serials []string
	for _, s := range info.Slots {
		if s.Initialized {
			serials = append(serials, s.Serial)
		}
	}
	opened := 0
	for _, serial := range serials {
		cfg := f.Config()
		cfg.TokenSerial = serial
		r := Run(t.Context(), Options{Token: cfg})
		want(t, r, "token", OK, serial)
		if slices.ContainsFunc(r.Checks, func(c Check) bool { return c.Name == "login" && c.Status == OK }) {
			opened++
		}
	}
	if len(serials) != 2 || opened != 1 {
		t.Errorf("%d tokens, %d opened by the one's PIN; want 2 and 1", len(serials), opened)
	}
}

// TestNoCanary fails an installation: its daemon would never be ready.
func TestNoCanary(t *testing.T) {
	i := install(t, false)
	token := i.open()
	must(t, token.Destroy(t.Context(), []byte("keyhold-canary"), "keyhold-canary"))
	hsmtest.Close(t, token)
	r := i.run()
	want(t, r, "canary", Fail, "no canary key")
	want(t, r, "custody", OK, "")
}

// TestSharedModule loads a library once, however many tokens it has, and says
// so once.
func TestSharedModule(t *testing.T) {
	i := install(t, true)
	_, err := softhsmconfig.Init(t.Context(), softhsmconfig.Options{Dir: i.dir, Label: "second", Module: i.fixture.Module})
	must(t, err)
	must(t, i.fixture.Use())
	i.configure(func(c *server.Config) {
		second := c.Tokens[0]
		second.Name, second.Label, second.PINSource = "second", "second", "file:"+filepath.Join(i.dir, "second.pin")
		c.Tokens = append(c.Tokens, second)
		c.Regions = append(c.Regions, server.RegionConfig{Name: "eu-west-1", Token: "second"})
	})
	r := i.run()
	modules, logins := 0, 0
	for _, c := range r.Checks {
		switch {
		case c.Name == "module":
			modules++
		case c.Name == "login" && c.Status == OK:
			logins++
		}
	}
	if modules != 1 || logins != 2 || len(r.Tokens) != 2 {
		t.Errorf("%d modules, %d logins, %d tokens; want 1, 2 and 2", modules, logins, len(r.Tokens))
	}
	want(t, r, "canary", Fail, "no canary") // of the second
}
