package hsm

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
)

func TestInitToken(t *testing.T) {
	w := newWorld(t, true)
	cfg := InitConfig{Module: w.module, Label: "alpha", SOPIN: []byte("12345678"), UserPIN: []byte("1234")}
	serial, err := InitToken(ctx(t), cfg)
	check(t, err)
	if len(serial) != 16 {
		t.Errorf("serial number %q", serial)
	}
	if string(cfg.SOPIN) != "12345678" || string(cfg.UserPIN) != "1234" {
		t.Error("the caller's PINs were changed")
	}
	if _, err := InitToken(ctx(t), cfg); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("same label: %v", err)
	}
	cfg.Label = strings.Repeat("x", 32)
	second, err := InitToken(ctx(t), cfg)
	check(t, err)
	if second == serial {
		t.Error("two tokens with one serial number")
	}
	entries, err := os.ReadDir(w.tokens)
	check(t, err)
	if len(entries) != 2 {
		t.Errorf("%d token folders, want 2", len(entries))
	}
	if n, f := w.fault.Calls(t, "C_Initialize"), w.fault.Calls(t, "C_Finalize"); n != f {
		t.Errorf("%d C_Initialize, %d C_Finalize", n, f)
	}

	// While a token of the module is in use.
	pin := filepath.Join(w.dir, "pin")
	check(t, os.WriteFile(pin, []byte("1234"), 0o600))
	tok := w.open(Config{Module: w.module, TokenSerial: serial, PIN: PINFile(pin), ProbeCache: w.probes})
	k := aesKey(t, tok, "one")
	cfg.Label = "third"
	_, err = InitToken(ctx(t), cfg)
	check(t, err)
	works(t, k)
	third := w.open(Config{Module: w.module, TokenLabel: "third", PIN: PINFile(pin), ProbeCache: w.probes})
	works(t, aesKey(t, third, "one"))
}

func TestInitTokenRefuses(t *testing.T) {
	w := newWorld(t, true)
	good := InitConfig{Module: w.module, Label: "alpha", SOPIN: []byte("12345678"), UserPIN: []byte("1234")}
	for name, spoil := range map[string]func(c *InitConfig){
		"relative module": func(c *InitConfig) { c.Module = "x.so" },
		"no such module":  func(c *InitConfig) { c.Module = w.dir + "/none.so" },
		"no label":        func(c *InitConfig) { c.Label = "" },
		"long label":      func(c *InitConfig) { c.Label = strings.Repeat("x", 33) },
		"no SO PIN":       func(c *InitConfig) { c.SOPIN = nil },
		"no user PIN":     func(c *InitConfig) { c.UserPIN = nil },
		"long PIN":        func(c *InitConfig) { c.UserPIN = make([]byte, maxPINBytes+1) },
		"short PIN":       func(c *InitConfig) { c.UserPIN = []byte("1") }, // SoftHSM wants 4
	} {
		c := good
		spoil(&c)
		if _, err := InitToken(ctx(t), c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestInitTokenHangs(t *testing.T) {
	w := newWorld(t, true)
	w.fault.Hang(t, "C_InitToken")
	_, err := InitToken(short(t, 50*time.Millisecond), InitConfig{Module: w.module, Label: "alpha", SOPIN: []byte("12345678"), UserPIN: []byte("1234")})
	wantErr(t, "init", err, context.DeadlineExceeded)
	finalized := w.fault.Calls(t, "C_Finalize")
	w.fault.Clear(t, "C_InitToken")
	until(t, "it has ended", func() bool { return w.fault.Calls(t, "C_Finalize") == finalized+1 })
}

func TestInspectModule(t *testing.T) {
	w := newWorld(t, true)
	w.token("alpha")
	w.token("beta")
	logins := w.fault.Calls(t, "C_Login")
	info, err := InspectModule(ctx(t), w.module)
	check(t, err)
	if !strings.Contains(info.Library, "PKCS11") || info.CryptokiVersion == "" {
		t.Errorf("module: %+v", info)
	}
	labels := map[string]bool{}
	for _, s := range info.Slots {
		if s.Initialized {
			labels[s.Label] = true
			if !s.LoginRequired || !s.PIN.Initialized || s.Serial == "" || s.Manufacturer != softhsmMaker || s.MaxSessions != 0 {
				t.Errorf("slot: %+v", s)
			}
		}
	}
	if len(labels) != 2 || !labels["alpha"] || !labels["beta"] || len(info.Slots) != 3 {
		t.Errorf("slots: %+v", info.Slots)
	}
	if n := w.fault.Calls(t, "C_Login"); n != logins {
		t.Error("it logged in")
	}
	w.fault.Fail(t, "C_GetTokenInfo", pkcs11.CKR_TOKEN_NOT_RECOGNIZED, 1)
	info, err = InspectModule(ctx(t), w.module)
	check(t, err)
	if !strings.Contains(info.Slots[0].Err, "CKR_TOKEN_NOT_RECOGNIZED") {
		t.Errorf("slot: %+v", info.Slots[0])
	}
	if _, err := InspectModule(ctx(t), "x.so"); err == nil {
		t.Error("a relative path was accepted")
	}
}
