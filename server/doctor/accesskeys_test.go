package doctor

import (
	"strings"
	"testing"
	"time"

	"github.com/keyhold/keyhold/hsm/hsmtest"
	"github.com/keyhold/keyhold/server"
	"github.com/keyhold/keyhold/server/identity"
	"github.com/keyhold/keyhold/server/kms"
	"github.com/keyhold/keyhold/server/kms/tokenstore"
	"github.com/keyhold/keyhold/server/store/sqlite"
)

// addAccessKey makes an access key as the service would, and returns its record.
func (i *installation) addAccessKey(id, principal string) *identity.AccessKeyRecord {
	i.t.Helper()
	s, err := sqlite.Open(i.t.Context(), i.cfg.DataDir, sqlite.Options{})
	must(i.t, err)
	defer s.Close()
	token := i.open()
	defer hsmtest.Close(i.t, token)
	r := &identity.AccessKeyRecord{ID: id, Principal: principal, Active: true, Created: time.Now()}
	r.SealedSecret, err = server.AccessKeySealer(kms.NewSealKey(tokenstore.New(token), s.Instance())).Seal(i.t.Context(), r.SealedFor(), identity.NewSecret())
	must(i.t, err)
	must(i.t, s.InsertAccessKey(i.t.Context(), r))
	return r
}

// withSealKey calls use with the installation's seal key and home token.
func (i *installation) withSealKey(use func(home *tokenstore.Store, k *kms.SealKey)) {
	i.t.Helper()
	s, err := sqlite.OpenReadOnly(i.t.Context(), i.cfg.DataDir, sqlite.Options{})
	must(i.t, err)
	defer s.Close()
	token := i.open()
	defer hsmtest.Close(i.t, token)
	home := tokenstore.New(token)
	use(home, kms.NewSealKey(home, s.Instance()))
}

func (i *installation) ensureSealKey() {
	i.t.Helper()
	i.withSealKey(func(_ *tokenstore.Store, k *kms.SealKey) {
		_, err := k.Ensure(i.t.Context())
		must(i.t, err)
	})
}

func (i *installation) loseSealKey() {
	i.t.Helper()
	i.withSealKey(func(home *tokenstore.Store, k *kms.SealKey) {
		must(i.t, home.Destroy(i.t.Context(), kms.Locator{ID: []byte(k.Label()), Label: k.Label()}))
	})
}

// initialise runs init, which must say those words: in its last line, or as an
// error.
func (i *installation) initialise(words, failure string) {
	i.t.Helper()
	must(i.t, i.fixture.Use())
	cfg, err := server.LoadConfig(i.file)
	must(i.t, err)
	done, err := server.Initialise(i.t.Context(), cfg, server.Options{Logger: discard(), Version: "test"})
	switch {
	case failure != "" && (err == nil || !strings.Contains(err.Error(), failure)):
		i.t.Errorf("init: %v, want %q", err, failure)
	case failure == "" && (err != nil || !strings.Contains(done[len(done)-1], words)):
		i.t.Errorf("init: %v, %v, want %q", done, err, words)
	}
}

// TestAccessKeys: what doctor says of the seal key and of access keys, from an
// installation without a seal key, as an older version made it, to one that has lost
// it; and what init does then.
func TestAccessKeys(t *testing.T) {
	i := install(t, false)
	const root = "arn:aws:iam::111122223333:root"
	i.loseSealKey()
	r := i.run()
	want(t, r, "seal-key", Warn, "no seal key")
	want(t, r, "access-keys", OK, "0 access keys")

	i.initialise("made the seal key in the token home", "")
	i.initialise("seal key exists in the token home", "")
	i.addAccessKey("AKIA1", root)
	second := i.addAccessKey("AKIA2", root)
	r = i.run()
	want(t, r, "seal-key", OK, "opens the secrets of 2 access keys")
	want(t, r, "access-keys", OK, "2 access keys, 2 active")
	want(t, r, "custody", OK, "2 private or secret objects, 2 of Keyhold")

	i.addAccessKey("AKIA3", "arn:aws:iam::111122223333:user/gone")
	want(t, i.run(), "access-keys", Warn, "AKIA3 of arn:aws:iam::111122223333:user/gone")

	// Another row's value.
	s, err := sqlite.Open(t.Context(), i.cfg.DataDir, sqlite.Options{})
	must(t, err)
	must(t, s.DeleteAccessKey(t.Context(), "AKIA1"))
	must(t, s.InsertAccessKey(t.Context(), &identity.AccessKeyRecord{ID: "AKIA1", Principal: root, Active: true, Created: time.Now(), SealedSecret: second.SealedSecret}))
	must(t, s.Close())
	want(t, i.run(), "seal-key", Fail, "AKIA1 of "+root)

	// The key is lost; then somebody made a new one of its name.
	i.loseSealKey()
	i.initialise("", "3 access keys are sealed by it; hint: the token of the first of regions: in the configuration must have it: if their order")
	want(t, i.run(), "seal-key", Fail, "3 access keys sealed by it")
	i.ensureSealKey()
	want(t, i.run(), "seal-key", Fail, "the secrets of 3 access keys do not open")
}
