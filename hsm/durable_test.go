package hsm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// syncs records what a token's connection syncs, from now on.
type syncs struct {
	mu    sync.Mutex
	names []string
	fail  error
}

func record(tok *Token) *syncs {
	r := &syncs{}
	d := tok.state.Load().conn.durable
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fsync = func(f *os.File) error {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.names = append(r.names, f.Name())
		return errors.Join(r.fail, f.Sync())
	}
	return r
}

// take returns what was synced since the last call, sorted.
func (r *syncs) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	names := slices.Sorted(slices.Values(r.names))
	r.names = nil
	return slices.Compact(names)
}

// objectFiles lists the object files of a folder.
func objectFiles(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.object"))
	check(t, err)
	return slices.DeleteFunc(names, func(n string) bool { return filepath.Base(n) == "token.object" })
}

// TestSyncedFiles: exactly the new files, the counters and the folder are synced before a change is answered, and nothing for reading.
func TestSyncedFiles(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(w.token("alpha"))
	dir := tokenDir(t, tok)
	if !strings.HasPrefix(dir, w.tokens) || serialOfUUID(filepath.Base(dir)) != tok.Status().Serial {
		t.Fatalf("folder %s of serial %s", dir, tok.Status().Serial)
	}
	always := []string{dir, filepath.Join(dir, "generation"), filepath.Join(dir, "token.object")}
	r := record(tok)

	before := objectFiles(t, dir)
	k := aesKey(t, tok, "one")
	added := slices.DeleteFunc(objectFiles(t, dir), func(n string) bool { return slices.Contains(before, n) })
	if len(added) != 1 {
		t.Fatalf("files added: %v", added)
	}
	if diff := cmp.Diff(slices.Sorted(slices.Values(append(added, always...))), r.take()); diff != "" {
		t.Errorf("generate (-want +got):\n%s", diff)
	}

	before = objectFiles(t, dir)
	_, err := tok.Generate(ctx(t), GenerateRequest{Spec: P256, Purpose: PurposeSign, ID: []byte("pair"), Label: "pair"})
	check(t, err)
	added = slices.DeleteFunc(objectFiles(t, dir), func(n string) bool { return slices.Contains(before, n) })
	if len(added) != 2 {
		t.Fatalf("files added: %v", added)
	}
	if diff := cmp.Diff(slices.Sorted(slices.Values(append(added, always...))), r.take()); diff != "" {
		t.Errorf("generate a pair (-want +got):\n%s", diff)
	}

	works(t, k)
	_, err = tok.Objects(ctx(t))
	check(t, err)
	if got := r.take(); len(got) != 0 {
		t.Errorf("reading synced %v", got)
	}

	check(t, tok.Destroy(ctx(t), []byte("one"), "label of one"))
	if diff := cmp.Diff(slices.Sorted(slices.Values(always)), r.take()); diff != "" {
		t.Errorf("destroy (-want +got):\n%s", diff)
	}
}

// TestSyncFails: what is not durable is not answered with success, and does not stay.
func TestSyncFails(t *testing.T) {
	w := newWorld(t, true)
	tok := w.ready(w.token("alpha"))
	aesKey(t, tok, "old")
	r := record(tok)
	r.mu.Lock()
	r.fail = errors.New("input/output error")
	r.mu.Unlock()
	_, err := tok.Generate(ctx(t), GenerateRequest{Spec: AES256, Purpose: PurposeSeal, ID: []byte("one"), Label: "one"})
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "durable") {
		t.Fatalf("generate: %v", err)
	}
	wantErr(t, "destroy", tok.Destroy(ctx(t), []byte("old"), "label of old"), ErrUnavailable)
	// It is gone from the folder, but a loss of power may bring it back: nobody must believe yet that there is no such key.
	wantErr(t, "destroy again", tok.Destroy(ctx(t), []byte("old"), "label of old"), ErrUnavailable)
	r.mu.Lock()
	r.fail = nil
	r.mu.Unlock()
	r.take()
	wantErr(t, "destroy at last", tok.Destroy(ctx(t), []byte("old"), "label of old"), ErrKeyNotFound)
	if !slices.Contains(r.take(), tokenDir(t, tok)) {
		t.Error("the folder was not synced before the key was reported absent")
	}
	until(t, "nothing is left of the key", func() bool {
		_, _, err := seal(ctx(t), tok.Key(AES256, PurposeSeal, []byte("one")))
		return errors.Is(err, ErrKeyNotFound)
	})
	k := aesKey(t, tok, "one")
	works(t, k)
}

func TestSoftHSMRoot(t *testing.T) {
	dir := t.TempDir()
	write := func(text string) string {
		path := filepath.Join(dir, "conf")
		check(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	for _, c := range []struct{ text, want, err string }{
		{"directories.tokendir = /var/tokens\n", "/var/tokens", ""},
		{"# comment\n  directories.tokendir=/var/tokens/ # here\nobjectstore.backend = file\n", "/var/tokens", ""},
		{"objectstore.backend = db\ndirectories.tokendir = /var/tokens\n", "", `"db"`},
		{"log.level = ERROR\n", "", "names no directories.tokendir"},
		{"", "", "names no directories.tokendir"},
		{"no equals sign\n", "", "names no directories.tokendir"},
	} {
		got, err := softhsmRoot(write(c.text))
		if got != c.want || (err == nil) != (c.err == "") || (err != nil && !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%q: got %q, %v; want %q, %q", c.text, got, err, c.want, c.err)
		}
	}
	if _, err := softhsmRoot(""); err == nil {
		t.Error("no configuration, but a root")
	}
}

// TestUnknownTokenFolder: a SoftHSM whose folder is not found is not used, since its keys could not be made durable.
func TestUnknownTokenFolder(t *testing.T) {
	w := newWorld(t, true)
	cfg := w.token("alpha")
	conf := os.Getenv("SOFTHSM2_CONF")
	original, err := os.ReadFile(conf)
	check(t, err)
	// SoftHSM has read its configuration when the second file is moved in: hold it in C_Initialize.
	elsewhere := strings.ReplaceAll(string(original), w.tokens, t.TempDir())
	w.fault.Hang(t, "C_GetSlotList")
	tok := w.open(cfg)
	until(t, "it is in C_GetSlotList", func() bool { return w.fault.Hanging(t, "C_GetSlotList") == 1 })
	check(t, os.WriteFile(conf, []byte(elsewhere), 0o600))
	w.fault.Clear(t, "C_GetSlotList")
	until(t, "it says so", func() bool {
		return strings.Contains(tok.Status().Reason, "belong to serial number") || strings.Contains(tok.Status().Reason, "not found")
	})
	check(t, os.WriteFile(conf, original, 0o600))
	check(t, tok.WaitReady(ctx(t)))
}

func TestSerialOfUUID(t *testing.T) {
	for name, want := range map[string]string{
		"5c2d4f5e-1234-5678-9abc-def012345678":  "9abcdef012345678",
		"5c2d4f5e-1234-5678-9abc-def01234567":   "",
		"5c2d4f5e-1234-5678-9abc-def0123456789": "",
		"5c2d4f5e_1234-5678-9abc-def012345678":  "",
		"":                                      "", "lost+found": "",
	} {
		if got := serialOfUUID(name); got != want {
			t.Errorf("%q: got %q, want %q", name, got, want)
		}
	}
}

// TestKnownFilesAreForgotten: what is kept of files does not grow with those that came and went, and no file is synced twice.
func TestKnownFilesAreForgotten(t *testing.T) {
	synced := map[string]int{}
	d := &durable{dir: t.TempDir(), fsync: func(f *os.File) error { synced[filepath.Base(f.Name())]++; return nil }}
	add := func(name string) { check(t, os.WriteFile(filepath.Join(d.dir, name+".object"), nil, 0o600)) }
	add("stays")
	for i := range 3 * knownGone {
		name := fmt.Sprint(i)
		add(name)
		check(t, d.sync())
		if n := synced[name+".object"]; n != 1 {
			t.Fatalf("file %d was synced %d times", i, n)
		}
		check(t, os.Remove(filepath.Join(d.dir, name+".object")))
	}
	if n := synced["stays.object"]; n != 1 {
		t.Errorf("a file that stayed was synced %d times", n)
	}
	if n := len(d.known); n > 2*2+knownGone {
		t.Errorf("%d names are kept of 1 file", n)
	}
}
