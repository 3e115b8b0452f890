package storetest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/keyhold/keyhold/server/kms"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// crashWorkers write at the same time, each on keys of its own. So at most
// that many writes are in the air when the process dies.
const crashWorkers = 4

// crashLeaseLimit is the limit of the leases; it is never reached.
const crashLeaseLimit = 1 << 40

// crashNote is a line from the process that writes to the one that watches.
type crashNote struct {
	Done bool      // said twice: before the call, and after it returned nil
	Op   string    // one of the op constants
	Key  kms.KeyID // which one
	Gen  int       // of the key, after the call; 0 where it is gone
	N    uint64    // seals asked for, or given
}

const (
	opKey   = "key"   // insert, update or delete: the key is at Gen
	opAlias = "alias" // insert: the key has its alias
	opLease = "lease" // N seals of the key's first version
)

// CrashWriter writes to s until ctx ends or a write fails. It says each write
// on w before it begins and after it returned, in one Write of a line shorter
// than PIPE_BUF: what the process said before it was killed is in the pipe.
func CrashWriter(ctx context.Context, s kms.Store, w io.Writer) error {
	g, ctx := errgroup.WithContext(ctx)
	for range crashWorkers {
		g.Go(func() error {
			for n := 0; ctx.Err() == nil; n++ {
				if err := crashLife(ctx, s, w, n); err != nil {
					return err
				}
			}
			return ctx.Err()
		})
	}
	return g.Wait()
}

// crashLife lets one key live. Every second one is deleted at its end.
func crashLife(ctx context.Context, s kms.Store, w io.Writer, n int) error {
	id := kms.KeyID("crash-" + rand.Text())
	r := crashKey(id, 1)
	if err := say(w, crashNote{Op: opKey, Key: id, Gen: 1}, func() error { return s.InsertKey(ctx, r) }); err != nil {
		return err
	}
	if err := say(w, crashNote{Op: opAlias, Key: id}, func() error { return s.InsertAlias(ctx, crashAlias(id)) }); err != nil {
		return err
	}
	for gen := 2; gen <= 4; gen++ {
		next := crashKey(id, gen)
		next.Revision = r.Revision
		r = next
		if err := say(w, crashNote{Op: opKey, Key: id, Gen: gen}, func() error { return s.UpdateKey(ctx, r) }); err != nil {
			return err
		}
		if err := say(w, crashNote{Op: opLease, Key: id, N: uint64(gen)}, func() error {
			_, granted, err := s.LeaseSeals(ctx, r.Versions[0].Ref, uint64(gen), crashLeaseLimit)
			if err == nil && granted != uint64(gen) {
				err = fmt.Errorf("%d seals granted, not %d", granted, gen)
			}
			return err
		}); err != nil {
			return err
		}
	}
	if n%2 == 0 {
		return nil
	}
	return say(w, crashNote{Op: opKey, Key: id, Gen: 0}, func() error { return s.DeleteKey(ctx, id, r.Revision) })
}

func say(w io.Writer, n crashNote, write func() error) error {
	if err := sayLine(w, n); err != nil {
		return err
	}
	if err := write(); err != nil {
		return fmt.Errorf("%s of %s: %w", n.Op, n.Key, err)
	}
	n.Done = true
	return sayLine(w, n)
}

func sayLine(w io.Writer, n crashNote) error {
	b, err := json.Marshal(n)
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// crashKey is the record at a generation. All of it follows from id and
// generation, so that a record of mixed parts is recognised.
func crashKey(id kms.KeyID, gen int) *kms.KeyRecord {
	r := &kms.KeyRecord{
		ID: id, Account: account, Region: region,
		Spec:    keyholdv1.KeySpec_KEY_SPEC_SYMMETRIC_DEFAULT,
		Usage:   keyholdv1.KeyUsageType_KEY_USAGE_TYPE_ENCRYPT_DECRYPT,
		State:   keyholdv1.KeyState_KEY_STATE_ENABLED,
		Created: moment(gen),
		Versions: []kms.KeyVersion{
			crashVersion(id, 1),
		},
	}
	for v := 2; v <= gen; v++ {
		r.Versions = append(r.Versions, crashVersion(id, v))
	}
	generation(r, gen)
	return r
}

func crashVersion(id kms.KeyID, n int) kms.KeyVersion {
	sum := sha256.Sum256([]byte(string(id) + " " + strconv.Itoa(n)))
	ref := kms.Ref(sum[:16])
	return kms.KeyVersion{
		MaterialID: kms.KeyMaterialID(fmt.Sprintf("%x", sum)),
		Ref:        ref,
		Locator: kms.Locator{
			ID:    sum[:20],
			Spec:  keyholdv1.KeySpec_KEY_SPEC_SYMMETRIC_DEFAULT,
			Usage: keyholdv1.KeyUsageType_KEY_USAGE_TYPE_ENCRYPT_DECRYPT,
		},
		Custody: keyholdv1.KeyCustodyType_KEY_CUSTODY_TYPE_GENERATED,
		Created: moment(n),
	}
}

func crashAlias(id kms.KeyID) *kms.AliasRecord { return newAlias("alias/"+string(id), id) }

// CrashLog knows from a CrashWriter's lines what its store must hold.
type CrashLog struct {
	keys map[kms.KeyID]*crashState
}

// crashState is what is known of one key. The pending members tell of a write
// that was begun and not acknowledged: it may be there or not, as a whole.
type crashState struct {
	gen          int // 0: not there
	pendingGen   int // -1: none
	alias        bool
	pendingAlias bool
	seals        uint64
	pendingSeals uint64
}

// NewCrashLog returns the log of an empty store.
func NewCrashLog() *CrashLog { return &CrashLog{keys: map[kms.KeyID]*crashState{}} }

// Note takes one line in, and reports whether it acknowledges a write.
func (l *CrashLog) Note(line []byte) (acknowledged bool, err error) {
	var n crashNote
	if err := json.Unmarshal(line, &n); err != nil {
		return false, fmt.Errorf("line %q: %w", line, err)
	}
	st := l.keys[n.Key]
	if st == nil {
		st = &crashState{pendingGen: -1}
		l.keys[n.Key] = st
	}
	switch {
	case n.Op == opKey && n.Done:
		st.gen, st.pendingGen = n.Gen, -1
		if n.Gen == 0 {
			st.alias = false
		}
	case n.Op == opKey:
		st.pendingGen = n.Gen
	case n.Op == opAlias:
		st.alias, st.pendingAlias = n.Done, !n.Done
	case n.Op == opLease && n.Done:
		st.seals, st.pendingSeals = st.seals+n.N, 0
	case n.Op == opLease:
		st.pendingSeals = n.N
	default:
		return false, fmt.Errorf("line %q: unknown operation", line)
	}
	return n.Done, nil
}

// Check compares the store, opened again after the process was killed, with
// what the process had said: nothing acknowledged is lost, nothing is there by
// half, nothing is there that was not asked for. Afterwards the log knows how
// the writes in the air came out, and takes the next process's lines.
func (l *CrashLog) Check(t *testing.T, s kms.Store) {
	t.Helper()
	snap := snapshot(t, s)
	found := make(map[kms.KeyID]*kms.KeyRecord, len(snap.Keys))
	for _, r := range snap.Keys {
		found[r.ID] = r
		if l.keys[r.ID] == nil {
			t.Errorf("key %s is there, and nobody made it", r.ID)
		}
	}
	aliases := map[kms.KeyID]bool{}
	for _, a := range snap.Aliases {
		aliases[a.KeyID] = true
		if found[a.KeyID] == nil || a.Name != crashAlias(a.KeyID).Name {
			t.Errorf("%s names key %s", a.Name, a.KeyID)
		}
	}
	for id, st := range l.keys {
		if err := st.settle(t.Context(), s, id, found[id], aliases[id]); err != nil {
			t.Errorf("key %s: %v", id, err)
		}
	}
}

// settle checks one key and takes over what was found.
func (st *crashState) settle(ctx context.Context, s kms.Store, id kms.KeyID, r *kms.KeyRecord, alias bool) error {
	gen := 0
	if r != nil {
		var err error
		if gen, err = crashGeneration(r); err != nil {
			return err
		}
	}
	if gen != st.gen && gen != st.pendingGen {
		return fmt.Errorf("is at generation %d; acknowledged: %d, in the air: %d", gen, st.gen, st.pendingGen)
	}
	if want := st.alias && gen != 0; alias != want && !st.pendingAlias {
		return fmt.Errorf("alias there: %t, want %t", alias, want)
	}
	seals, err := s.SealCount(ctx, crashVersion(id, 1).Ref)
	if gen == 0 {
		if !errors.Is(err, kms.ErrNotFound) {
			return fmt.Errorf("key gone, SealCount = %d, %w", seals, err)
		}
		*st = crashState{pendingGen: -1}
		return nil
	}
	if err != nil {
		return fmt.Errorf("read seal count: %w", err)
	}
	if seals != st.seals && seals != st.seals+st.pendingSeals {
		return fmt.Errorf("seal count %d; acknowledged: %d, in the air: %d", seals, st.seals, st.pendingSeals)
	}
	*st = crashState{gen: gen, pendingGen: -1, alias: alias, seals: seals}
	return nil
}

// crashGeneration returns the generation of a record that is whole.
func crashGeneration(r *kms.KeyRecord) (int, error) {
	gen, err := strconv.Atoi(r.Description)
	if err != nil {
		return 0, err
	}
	want := crashKey(r.ID, gen)
	want.Revision = int64(gen)
	if g, w := showKeys([]*kms.KeyRecord{r}), showKeys([]*kms.KeyRecord{want}); g != w {
		return 0, fmt.Errorf("is there by half:\n%s\nwant:\n%s", g, w)
	}
	return gen, nil
}

// String says how many keys the log knows and how many of them are there, for
// a test's own account of what it did.
func (l *CrashLog) String() string {
	there := 0
	for _, st := range l.keys {
		if st.gen != 0 {
			there++
		}
	}
	return fmt.Sprintf("%d keys made, %d there", len(l.keys), there)
}
