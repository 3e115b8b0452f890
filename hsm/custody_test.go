package hsm

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"
)

func TestCustody(t *testing.T) {
	w := newWorld(t, false)
	tok := w.ready(w.token("custody"))
	aesKey(t, tok, "aes")
	_, err := tok.Generate(ctx(t), GenerateRequest{Spec: P256, Purpose: PurposeSign, ID: []byte("ec"), Label: "pair"})
	check(t, err)
	// What another program may have put there.
	check(t, tok.manage(ctx(t), "test", func(s *session) error {
		attr := pkcs11.NewAttribute
		_, err := s.p.GenerateKey(s.h, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, []*pkcs11.Attribute{
			attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_PRIVATE, false), attr(pkcs11.CKA_SENSITIVE, false), attr(pkcs11.CKA_EXTRACTABLE, true),
			attr(pkcs11.CKA_ID, []byte("loose")), attr(pkcs11.CKA_LABEL, "loose"), attr(pkcs11.CKA_VALUE_LEN, 32),
		})
		return err
	}))
	all, err := tok.Custody(ctx(t))
	check(t, err)
	want := map[string]string{canaryLabel: "secret key AES", "aes": "secret key AES", "ec": "private key EC", "loose": "secret key AES"}
	if len(all) != len(want) {
		t.Errorf("%d objects, want %d: public keys have no custody", len(all), len(want))
	}
	for _, c := range all {
		if got := c.Class.String() + " " + c.KeyTypeName(); got != want[string(c.ID)] {
			t.Errorf("%s is a %s, want %s", c.ID, got, want[string(c.ID)])
		}
		err := c.Proven()
		if string(c.ID) != "loose" {
			if err != nil {
				t.Errorf("%s: %v", c.ID, err)
			}
			continue
		}
		if !errors.Is(err, ErrCustody) {
			t.Fatalf("a key that may leave: %v, want ErrCustody", err)
		}
		for _, a := range []string{"CKA_SENSITIVE is false", "CKA_ALWAYS_SENSITIVE is false", "CKA_EXTRACTABLE is true", "CKA_NEVER_EXTRACTABLE is false", "CKA_PRIVATE is false"} {
			if !strings.Contains(err.Error(), a) {
				t.Errorf("%v does not say that %s", err, a)
			}
		}
		if strings.Contains(err.Error(), "CKA_LOCAL") {
			t.Errorf("%v: the key was generated in the token", err)
		}
	}
}

func TestCustodyUntold(t *testing.T) {
	c := ObjectCustody{Sensitive: true, AlwaysSensitive: true, NeverExtractable: true, Private: true, Untold: []string{"CKA_LOCAL"}}
	if err := c.Proven(); !errors.Is(err, ErrCustody) || !strings.Contains(err.Error(), "CKA_LOCAL is not told") {
		t.Errorf("an attribute that the token does not tell: %v", err)
	}
	c.Untold, c.Local = []string{"CKA_MODIFIABLE"}, true
	check(t, c.Proven())
}

// TestOpenOnce has one login, and no more, whatever happens.
func TestOpenOnce(t *testing.T) {
	w := newWorld(t, true)
	good, bare := w.token("once"), w.bareToken("bare")
	absent := good
	absent.TokenLabel = "absent"
	wrong := w.token("wrong")
	wrong.PIN = PINFile(filepath.Join(w.dir, "wrong-pin"))
	check(t, os.WriteFile(filepath.Join(w.dir, "wrong-pin"), []byte("not the PIN\n"), 0o600))

	for _, c := range []struct {
		name    string
		cfg     Config
		before  func()
		logins  int
		openErr string // OpenOnce fails; or else
		notOK   string // what Ready says
	}{
		{name: "well", cfg: good, logins: 1},
		{name: "no canary", cfg: bare, logins: 1, notOK: "no canary key"},
		{name: "canary fails", cfg: good, before: func() { w.fault.Fail(t, "C_EncryptInit", pkcs11.CKR_DEVICE_ERROR, 0) }, logins: 1, notOK: "CKR_DEVICE_ERROR"},
		{name: "absent", cfg: absent, openErr: `label "absent" not found`},
		{name: "wrong PIN", cfg: wrong, logins: 1, openErr: "PIN rejected"},
		{name: "locked", cfg: good, before: func() { w.fault.TokenFlags(pkcs11.CKF_USER_PIN_LOCKED, 0) }, openErr: "is locked"},
		{name: "final try", cfg: good, before: func() { w.fault.TokenFlags(pkcs11.CKF_USER_PIN_FINAL_TRY, 0) }, openErr: "one more try"},
		{name: "login fails like a broken device", cfg: good, before: func() { w.fault.Fail(t, "C_Login", pkcs11.CKR_DEVICE_ERROR, 0) }, logins: 1, openErr: "CKR_DEVICE_ERROR"},
	} {
		t.Run(c.name, func(t *testing.T) {
			defer w.fault.ClearAll()
			defer w.fault.TokenFlags(0, 0)
			if c.before != nil {
				c.before()
			}
			c.cfg.ProbeCache = w.probes
			logins := w.fault.Calls(t, "C_Login")
			tok, err := OpenOnce(ctx(t), c.cfg, Options{})
			if c.openErr != "" {
				if err == nil || !strings.Contains(err.Error(), c.openErr) {
					t.Errorf("OpenOnce: %v, want %q", err, c.openErr)
				}
			} else {
				check(t, err)
				if r := errorText(tok.Ready()); !strings.Contains(r, c.notOK) || (c.notOK == "") != (r == "") {
					t.Errorf("Ready: %q, want %q", r, c.notOK)
				}
				check(t, tok.Close(ctx(t)))
			}
			if n := w.fault.Calls(t, "C_Login") - logins; n != c.logins {
				t.Errorf("%d logins, want %d", n, c.logins)
			}
			if n, _ := w.fault.Sessions(); n != 0 {
				t.Errorf("%d sessions are left open", n)
			}
		})
	}
}

// TestOpenOnceHangs returns at its deadline.
func TestOpenOnceHangs(t *testing.T) {
	w := newWorld(t, true)
	cfg := w.token("hangs")
	w.fault.Hang(t, "C_Login")
	_, err := OpenOnce(short(t, cfg.HealthInterval), cfg, Options{})
	wantErr(t, "OpenOnce of a hanging library", err, context.DeadlineExceeded)
	w.fault.ClearAll()
	until(t, "what hung gives its sessions back", func() bool { n, _ := w.fault.Sessions(); return n == 0 })
}

// TestOpenOnceLost stays down when the connection is lost.
func TestOpenOnceLost(t *testing.T) {
	w := newWorld(t, true)
	tok, err := OpenOnce(ctx(t), w.token("lost"), Options{})
	check(t, err)
	w.fault.Fail(t, "C_FindObjectsInit", pkcs11.CKR_USER_NOT_LOGGED_IN, 0)
	_, err = tok.Custody(ctx(t))
	wantErr(t, "after the login was lost", err, ErrUnavailable)
	until(t, "down", func() bool { return tok.Status().State == StateDown })
	check(t, tok.Close(ctx(t)))
}
