package servertest

import (
	"context"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keyhold/keyhold/hsm/hsmtest"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/kms"
	"github.com/keyhold/keyhold/server/store/sqlite"
)

var errNotYet = errors.New("not yet")

// intruder is another program with the token's PIN.
func (f *fixture) intruder(t *testing.T) *hsmtest.Intruder {
	t.Helper()
	tokens.Lock()
	defer tokens.Unlock()
	library, conf, pinFile := f.d.SoftHSM()
	return hsmtest.NewIntruder(t, library, conf, f.d.Settings.Tokens[0].Label, pinFile)
}

// object says where a key is in the token.
func (f *fixture) object(t *testing.T, k *Key) kms.Locator {
	t.Helper()
	reader, err := sqlite.OpenReadOnly(t.Context(), f.d.Settings.DataDir, sqlite.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	rec, err := reader.Key(t.Context(), kms.KeyID(k.ID))
	if err != nil {
		t.Fatal(err)
	}
	return rec.Versions[0].Locator
}

// newKey makes a key that only this row uses.
func (f *fixture) newKey(t *testing.T) (*Key, operation) {
	t.Helper()
	var key *Key
	f.d.until(t, "a key is made", func() (err error) {
		key, err = f.load.CreateKey(t.Context(), &keyholdv1.CreateKeyRequest{})
		return err
	})
	return key, operation{"encrypt with the row's key", "", func(ctx context.Context, f *fixture) error {
		_, err := f.c.Crypto.Encrypt(ctx, &keyholdv1.EncryptRequest{KeyId: key.ID, Plaintext: []byte("x")})
		return err
	}}
}

// relogin makes the daemon initialise the library and log in anew: SoftHSM takes
// the PIN that it knew from its start until then.
func (f *fixture) relogin(t *testing.T) {
	t.Helper()
	initialised := f.d.Module.Calls(t, "C_Initialize")
	f.d.Module.Remove()
	f.d.until(t, "the library is initialised again", func() error {
		if f.d.Module.Calls(t, "C_Initialize") == initialised {
			return errNotYet
		}
		return nil
	})
	f.d.Module.Return()
}

// newPIN gives the daemon a PIN, and makes it use it.
func (f *fixture) newPIN(t *testing.T, file string, pin []byte) {
	t.Helper()
	if err := os.WriteFile(file, pin, 0o600); err != nil {
		t.Fatal(err)
	}
	f.relogin(t)
	f.d.Signal(t, syscall.SIGHUP)
}

// intruderRows are what others do who have the PIN.
func intruderRows() []row {
	away := []codes.Code{codes.Unavailable, codes.DeadlineExceeded}
	return []row{
		{"pin-changed", away, func(t *testing.T, f *fixture, r row) {
			in := f.intruder(t)
			_, _, pinFile := f.d.SoftHSM()
			right, err := os.ReadFile(pinFile)
			if err != nil {
				t.Fatal(err)
			}
			const changed = "another PIN than before"
			in.SetPIN(t, changed)
			defer func() { // for the rows to come
				in.SetPIN(t, strings.TrimSpace(string(right)))
				f.newPIN(t, pinFile, right)
				f.d.WaitReady(t)
			}()
			// A login that is there goes on.
			f.serves(t, r.name, operations()...)
			logins := f.d.Module.Calls(t, "C_Login")
			f.relogin(t)
			f.d.WaitNotReady(t, "not tried again")
			f.refused(t, op("encrypt"), callDeadline, codes.Unavailable)
			if n := f.d.Module.Calls(t, "C_Login") - logins; n != 1 {
				t.Errorf("%d logins with a PIN that is wrong, want one", n)
			}
			if err := os.WriteFile(pinFile, []byte(changed), 0o600); err != nil {
				t.Fatal(err)
			}
			f.d.Signal(t, syscall.SIGHUP)
			f.serves(t, r.name, operations()...)
			if strings.Contains(f.d.Log.String(), changed) {
				t.Error("the log shows a PIN")
			}
		}},
		{"foreign-object-with-our-id", away, func(t *testing.T, f *fixture, r row) {
			in := f.intruder(t)
			key, use := f.newKey(t)
			remove := in.Plant(t, f.object(t, key).ID, "not ours")
			f.d.Module.LoseSessions() // whatever was known of the token's objects is read again
			f.happened(t)
			f.serves(t, r.name, operations()...)
			f.refused(t, use, callDeadline, codes.Internal)
			remove()
			f.serves(t, r.name, append(operations(), use)...)
		}},
		{"foreign-object-with-our-label", away, func(t *testing.T, f *fixture, r row) {
			in := f.intruder(t)
			key, use := f.newKey(t)
			remove := in.Plant(t, []byte("another id"), f.object(t, key).Label)
			f.d.Module.LoseSessions()
			f.happened(t)
			f.serves(t, r.name, append(operations(), use)...)
			f.load.Pause()
			f.check.Check(t)
			if f.check.Leftovers == 0 {
				t.Error("an object with our label and no record is not reported")
			}
			f.load.Resume()
			remove()
			f.serves(t, r.name, append(operations(), use)...)
		}},
		{"key-destroyed", away, func(t *testing.T, f *fixture, r row) {
			in := f.intruder(t)
			key, use := f.newKey(t)
			if n := in.Destroy(t, f.object(t, key).ID); n != 1 {
				t.Fatalf("%d objects were destroyed, want 1", n)
			}
			f.load.Ledger.Lost(key)
			f.d.Module.LoseSessions()
			f.happened(t)
			f.serves(t, r.name, operations()...)
			f.d.until(t, "the key is gone", func() error {
				if err := f.try(use, callDeadline); status.Code(err) != codes.Internal && status.Code(err) != codes.Unavailable {
					return errNotYet
				}
				return nil
			})
		}},
	}
}
