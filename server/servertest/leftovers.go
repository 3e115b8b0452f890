package servertest

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/keyhold/keyhold/hsm"
	"github.com/keyhold/keyhold/server/audit"
	"github.com/keyhold/keyhold/server/kms"
	"github.com/keyhold/keyhold/server/store/sqlite"
)

// tokens is held while a token is looked at: SoftHSM takes its configuration
// from the environment, which is the process's.
//
//nolint:gochecknoglobals // guards the process environment, which is global
var tokens sync.Mutex

// probes keeps what a SoftHSM can do: to find out takes longer than all else.
type probes struct{ m sync.Map }

// Get is hsm.ProbeCache's.
func (p *probes) Get(key string) ([]byte, bool) {
	v, ok := p.m.Load(key)
	if !ok {
		return nil, false
	}
	return v.([]byte), true //nolint:forcetypeassert // Put's
}

// Put is hsm.ProbeCache's.
func (p *probes) Put(key string, value []byte) { p.m.Store(key, value) }

//nolint:gochecknoglobals // a cache
var probed probes

// agreement compares the store with the token, as they are beside the daemon:
// through SoftHSM itself and a read-only connection. Creations that clients gave
// up may still be under way, so it looks again where there is something.
func (k *Checker) agreement(ctx context.Context) error {
	deadline := time.Now().Add(k.settle)
	for {
		orphans, err := k.d.orphans(ctx)
		if err != nil {
			return err
		}
		k.Leftovers = 0
		var lost []string
		for _, o := range orphans {
			if o.Kind != kms.OrphanRecord {
				k.Leftovers++
			} else if key := k.l.Ledger.key(string(o.KeyID)); key == nil || !key.lost {
				lost = append(lost, string(o.KeyID))
			}
		}
		switch {
		case len(orphans) == 0:
			return nil
		case time.Now().After(deadline) && len(lost) > 0:
			return fmt.Errorf("keys without their objects: %s", strings.Join(lost, ", "))
		case len(lost) == 0:
			return nil
		}
		time.Sleep(50 * time.Millisecond) // between two looks, not for something
	}
}

func (l *Ledger) key(id string) *Key {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.keys[id]
}

// orphans says what store and token do not agree on.
func (d *Daemon) orphans(ctx context.Context) ([]kms.Orphan, error) {
	reader, err := sqlite.OpenReadOnly(ctx, d.Settings.DataDir, sqlite.Options{})
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	before, err := reader.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	objects, err := d.objects(ctx)
	if err != nil {
		return nil, err
	}
	after, err := reader.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	return kms.FindOrphans(kms.Comparison{
		Instance: reader.Instance(), Region: kms.Region(d.Settings.Regions[0].Name), Before: before.Keys, Objects: objects, After: after.Keys,
		Begun: time.Now().Add(-time.Second), // younger creations may be under way
	}), nil
}

// objects lists what is in the token.
func (d *Daemon) objects(ctx context.Context) (_ []kms.StoredObject, err error) {
	library, conf, pinFile := d.SoftHSM()
	tokens.Lock()
	defer tokens.Unlock()
	old, set := os.LookupEnv("SOFTHSM2_CONF")
	if err := os.Setenv("SOFTHSM2_CONF", conf); err != nil {
		return nil, err
	}
	defer func() {
		if set {
			err = errors.Join(err, os.Setenv("SOFTHSM2_CONF", old))
		} else {
			err = errors.Join(err, os.Unsetenv("SOFTHSM2_CONF"))
		}
	}()
	token, err := hsm.OpenOnce(ctx, hsm.Config{
		Module: library, TokenLabel: d.Settings.Tokens[0].Label, PIN: hsm.PINFile(pinFile), ProbeCache: &probed, MaxSessions: 1,
	}, hsm.Options{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, token.Close(ctx)) }()
	found, err := token.Objects(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]kms.StoredObject, 0, len(found))
	for _, o := range found {
		out = append(out, kms.StoredObject{ID: o.ID, Label: o.Label, Public: o.Class != hsm.ClassSecretKey && o.Class != hsm.ClassPrivateKey})
	}
	return out, nil
}

// journal verifies what was written since the last time, and that it follows
// from what was there then.
func (k *Checker) journal() error {
	dir := k.d.Settings.Audit.Dir
	opts := audit.VerifyOptions{}
	if k.from != (audit.Anchor{}) {
		opts.From = &k.from
	}
	report, err := audit.Verify(dir, opts)
	if err != nil {
		return err
	}
	for rec, err := range audit.Read(dir, k.from.Count) {
		if err != nil {
			return err
		}
		if bytes.Contains(rec.Payload, []byte(`"eventName":"CreateKey"`)) {
			k.noteCreated(rec.Payload)
		}
	}
	k.from = report.Last
	for _, key := range k.l.Ledger.Keys() {
		if !k.created[key.ID] {
			return fmt.Errorf("the creation of key %s was acknowledged and is not recorded", key.ID)
		}
	}
	return nil
}

// noteCreated finds the id of the key in the record of its creation.
func (k *Checker) noteCreated(payload []byte) {
	_, rest, ok := bytes.Cut(payload, []byte(":key/"))
	if end := bytes.IndexByte(rest, '"'); ok && end > 0 {
		k.created[string(rest[:end])] = true
	}
}

// rest wants the counts of a daemon at rest.
func (k *Checker) rest() error {
	var wrong error
	for end := time.Now().Add(k.settle); ; {
		if wrong = k.counts(); wrong == nil || time.Now().After(end) {
			break
		}
		time.Sleep(20 * time.Millisecond) // between two looks
	}
	if v := k.d.Module.Violations(); len(v) > 0 {
		return fmt.Errorf("PKCS#11 was misused: %s", strings.Join(v, "; "))
	}
	return wrong
}

func (k *Checker) counts() error {
	m, err := k.d.Metrics()
	if err != nil {
		return err
	}
	name := k.d.Settings.Tokens[0].Name
	open, _ := k.d.Module.Sessions()
	if told := m.Sessions(name, "open"); open != told {
		return fmt.Errorf("%d sessions are open, the daemon says %d", open, told)
	}
	for _, what := range []string{"in use", "waiting", "stuck"} {
		if n := m.Sessions(name, what); n != 0 {
			return fmt.Errorf("%d sessions or calls %s", n, what)
		}
	}
	if n := m.Goroutines(); k.goroutines > 0 && n > k.goroutines+goroutineSlack {
		return fmt.Errorf("%d goroutines, %d at first", n, k.goroutines)
	}
	return nil
}

// plaintexts looks for the marker in everything that the daemon wrote since the
// last time.
func (k *Checker) plaintexts() error {
	shapes := shapesOf(k.l.Ledger.Marker)
	log := k.d.Log.String()
	if from := max(0, k.logged-2*len(k.l.Ledger.Marker)); holds([]byte(log[from:]), shapes) {
		return errors.New("the log shows a plaintext")
	}
	k.logged = len(log)
	return filepath.WalkDir(k.d.Dir, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it goes on working
		}
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) || err == nil && info.ModTime().Equal(k.scanned[path]) {
			return nil
		}
		b, err := os.ReadFile(path) //nolint:gosec // in the folder of the daemon that the test runs
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if holds(b, shapes) {
			return fmt.Errorf("%s holds a plaintext", path)
		}
		if err == nil {
			k.scanned[path] = info.ModTime()
		}
		return err
	})
}

// shapesOf returns how a text may look where it was written: as it is, in hex,
// and in base64, which depends on where in the whole it stands.
func shapesOf(text string) [][]byte {
	shapes := [][]byte{[]byte(text), []byte(hex.EncodeToString([]byte(text)))}
	for skip := range 3 {
		inner := text[skip:]
		shapes = append(shapes, []byte(base64.RawStdEncoding.EncodeToString([]byte(inner[:len(inner)/3*3]))))
	}
	return shapes
}

func holds(b []byte, shapes [][]byte) bool {
	return slices.ContainsFunc(shapes, func(s []byte) bool { return bytes.Contains(b, s) })
}
