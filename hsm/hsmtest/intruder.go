package hsmtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/keyhold/keyhold/hsm"
	softhsmconfig "github.com/keyhold/keyhold/softhsm-config"
)

// An Intruder is another program that has the PIN of a SoftHSM token: it does
// what Keyhold's users' other tools may do to Keyhold's objects. It has its own
// copy of the library, in the process of the test.
type Intruder struct {
	p       *pkcs11.Ctx
	session pkcs11.SessionHandle
	pin     string
}

// NewIntruder logs in to the token with that label. The library is SoftHSM, conf
// its configuration. It is logged out, and its library finalized, with the test.
// SOFTHSM2_CONF is set while the library reads it: nothing else in the process
// may initialise a SoftHSM meanwhile.
func NewIntruder(t testing.TB, library, conf, label, pinFile string) *Intruder {
	t.Helper()
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("intruder: %s: %v", what, err)
		}
	}
	content, err := os.ReadFile(library)
	must("read library", err)
	own := filepath.Join(t.TempDir(), "softhsm.so")
	must("copy library", os.WriteFile(own, content, 0o700))
	pin, err := hsm.PINFile(pinFile).Read()
	must("read PIN", err)
	i := &Intruder{p: pkcs11.New(own), pin: string(pin)}
	if i.p == nil {
		t.Fatalf("intruder: load %s", own)
	}
	old, set := os.LookupEnv(softhsmconfig.EnvConf)
	must("set configuration", os.Setenv(softhsmconfig.EnvConf, conf)) //nolint:usetesting // for a moment, and also in parallel tests
	err = i.p.Initialize()
	if set {
		must("put configuration back", os.Setenv(softhsmconfig.EnvConf, old)) //nolint:usetesting // the same
	} else {
		must("put configuration back", os.Unsetenv(softhsmconfig.EnvConf))
	}
	must("C_Initialize", err)
	t.Cleanup(func() { _ = i.p.Finalize() })
	slots, err := i.p.GetSlotList(true)
	must("C_GetSlotList", err)
	for _, slot := range slots {
		info, err := i.p.GetTokenInfo(slot)
		if err != nil || strings.TrimRight(info.Label, " \x00") != label {
			continue
		}
		i.session, err = i.p.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		must("C_OpenSession", err)
		must("C_Login", i.p.Login(i.session, pkcs11.CKU_USER, i.pin))
		return i
	}
	t.Fatalf("intruder: there is no token %q", label)
	return nil
}

// SetPIN changes the user's PIN.
func (i *Intruder) SetPIN(t testing.TB, pin string) {
	t.Helper()
	if err := i.p.SetPIN(i.session, i.pin, pin); err != nil {
		t.Fatalf("intruder: C_SetPIN: %v", err)
	}
	i.pin = pin
}

// Destroy destroys every token object with that CKA_ID, and returns how many
// there were.
func (i *Intruder) Destroy(t testing.TB, id []byte) int {
	t.Helper()
	found := i.find(t, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_ID, id)})
	for _, h := range found {
		if err := i.p.DestroyObject(i.session, h); err != nil {
			t.Fatalf("intruder: C_DestroyObject: %v", err)
		}
	}
	return len(found)
}

func (i *Intruder) find(t testing.TB, template []*pkcs11.Attribute) []pkcs11.ObjectHandle {
	t.Helper()
	if err := i.p.FindObjectsInit(i.session, template); err != nil {
		t.Fatalf("intruder: C_FindObjectsInit: %v", err)
	}
	found, _, err := i.p.FindObjects(i.session, 100)
	if err != nil {
		t.Fatalf("intruder: C_FindObjects: %v", err)
	}
	if err := i.p.FindObjectsFinal(i.session); err != nil {
		t.Fatalf("intruder: C_FindObjectsFinal: %v", err)
	}
	return found
}

// Plant makes an AES key with a CKA_ID and a label, as a token object, and returns
// what destroys it.
func (i *Intruder) Plant(t testing.TB, id []byte, label string) (remove func()) {
	t.Helper()
	h, err := i.p.GenerateKey(i.session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true), pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 32),
		pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, true), pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, true),
		pkcs11.NewAttribute(pkcs11.CKA_ID, id), pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
	})
	if err != nil {
		t.Fatalf("intruder: C_GenerateKey: %v", err)
	}
	return func() {
		if err := i.p.DestroyObject(i.session, h); err != nil {
			t.Errorf("intruder: C_DestroyObject: %v", err)
		}
	}
}
