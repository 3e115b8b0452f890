package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/keyhold/keyhold/hsm"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server"
	"github.com/keyhold/keyhold/server/audit"
	"github.com/keyhold/keyhold/server/kms"
	"github.com/keyhold/keyhold/server/store/sqlite"
)

// DefaultSealedSince is how many encryptions by each version of a key since the
// backup a restore allows for: 1/16 of what a version may do in its life. One
// that does 3,000 a second around the clock takes a day for it.
const DefaultSealedSince = 1 << 28

// lostRecords is how many records of durability "written" may be lost with the
// power, generously: they are of the last second.
const lostRecords = 1 << 20

// maxSeals is what a version of an AES key may encrypt in its life
// (NIST SP 800-38D, 8.3).
const maxSeals = 1 << 32

// RestoreOptions say what to restore, and where to.
type RestoreOptions struct {
	// Config says where things go: data_dir, audit.dir, and SoftHSM's folder of
	// tokens. None of them may hold an installation.
	Config *server.Config
	// In is the archive. Where Restore fails, a read of it may go on.
	In io.Reader
	// Manifest is the SHA-256 of the manifest that is expected, hex. Optional.
	Manifest string
	// Since is a point of the journal that was kept elsewhere, and that the
	// backup's journal must contain. Optional.
	Since *audit.Anchor
	// KeepJournal leaves the journal that is in audit.dir in place, which must
	// contain the point where the backup's ends.
	KeepJournal bool
	// KeepTokens leaves SoftHSM's tokens in place, as tokens of other makes are.
	KeepTokens bool
	// SealedSince is how often each version of a key may have encrypted since the
	// backup was made; that is counted as done. Optional: with KeepJournal what that
	// tells, if it is known where it ended, else DefaultSealedSince.
	SealedSince *uint64
	// KeepAccessKeys leaves access keys active that were so when the backup was made.
	// All are inactive otherwise: it is not known which of them were deactivated or
	// deleted since.
	KeepAccessKeys bool
	// AllowMissing restores records of keys whose material is not in the token.
	AllowMissing bool
	// SkipTokens leaves out the opening of tokens.
	SkipTokens bool
	// Program is the name and version of the running program.
	Program string
	// Now is the clock. Optional: time.Now.
	Now func() time.Time
}

// Restored is what was restored, and what an operator should know of it.
type Restored struct {
	Manifest *Manifest
	SHA256   string
	// End is where the backup's journal ended, Now where it stands with the event
	// of the restore.
	End, Now audit.Anchor
	// Unsure are changes that the journal tells of and that the store may not have, at
	// most 1000 of Recorded: those recorded while the backup was made, and with
	// KeepJournal all since. A CreateKey among them is a key that the store does not
	// have, or not finished.
	Unsure   []Change
	Recorded int
	// Pending are keys whose deletion was scheduled.
	Pending []*kms.KeyRecord
	// AccessKeys are those that were active in the backup. They are inactive now,
	// unless KeepAccessKeys was asked for.
	AccessKeys []AccessKey
	// Orphans are what records and tokens do not agree on.
	Orphans []kms.Orphan
	// SealedSince was counted for each of Versions versions of AES keys; Spent of
	// these encrypt no more.
	SealedSince     uint64
	Versions, Spent int
	// Unserved are regions with keys that the configuration does not serve.
	Unserved []string
	// Places are the paths that were filled.
	Places []string
}

// AccessKey is the id of an access key, and the ARN of whose it is.
type AccessKey struct{ ID, Principal string }

// ErrMissing says that the tokens lack the material of keys.
var ErrMissing = errors.New("keys are not in their token")

// Restore puts a backup in place. When it returns nil, all is in place and on the
// disk; after an error the targets are as they were. If the process is killed, the
// daemon does not start, and the next Restore takes back what was done. It sets
// the environment that the configuration wants for tokens, and no other code of
// the process may use PKCS#11 meanwhile.
func Restore(ctx context.Context, o RestoreOptions) (*Restored, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if err := setEnvironment(o.Config); err != nil {
		return nil, err
	}
	t, err := claim(o.Config, o.KeepJournal)
	if err != nil {
		return nil, err
	}
	in, stop := readUntil(ctx, o.In)
	defer stop()
	o.In = in
	r := &restorer{o: o, t: t, out: &Restored{}}
	moves, err := r.ready(ctx)
	if err == nil {
		err = t.commit(moves)
	}
	if interrupted := ctx.Err(); interrupted != nil && errors.Is(err, interrupted) {
		err = fmt.Errorf("restore: %w", interrupted) // and nothing is damaged
	}
	if err != nil {
		return nil, errors.Join(err, t.undo())
	}
	return r.out, t.done()
}

// readUntil reads from r until ctx ends, also where r is a pipe that nobody writes to:
// such a read of r goes on in the background.
func readUntil(ctx context.Context, r io.Reader) (in io.Reader, stop func()) {
	reads, writes := io.Pipe()
	go func() {
		_, err := io.Copy(writes, r)
		writes.CloseWithError(err)
	}()
	cancel := context.AfterFunc(ctx, func() { writes.CloseWithError(ctx.Err()) })
	return reads, func() { cancel(); reads.Close() }
}

type restorer struct {
	o    RestoreOptions
	t    *targets
	out  *Restored
	m    *Manifest
	keys []*kms.KeyRecord
	// unrecorded is how many of out.SealedSince the journal may have no records of.
	unrecorded uint64
}

// ready stages and verifies everything, and returns what remains to be done.
func (r *restorer) ready(ctx context.Context) ([]move, error) {
	a, err := openArchive(r.o.In, r.o.Manifest)
	if err != nil {
		return nil, err
	}
	r.m, r.out.Manifest, r.out.SHA256 = a.manifest, a.manifest, a.sum
	if err := r.place(ctx); err != nil {
		return nil, err
	}
	if err := r.t.prepare(); err != nil {
		return nil, err
	}
	if err := r.extract(ctx, a); err != nil {
		return nil, err
	}
	for _, step := range []func(context.Context) error{r.store, r.journal, r.tokens, r.unknown, r.record} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return r.moves()
}

// place finds where SoftHSM keeps its tokens, and makes sure that those of the
// backup are not there.
func (r *restorer) place(ctx context.Context) error {
	folders := false
	for _, t := range r.m.Tokens {
		if t.Folder == "" || r.o.KeepTokens {
			continue
		}
		folders = true
		if !slices.ContainsFunc(r.o.Config.Tokens, func(c server.TokenConfig) bool { return c.Name == t.Name }) {
			return fmt.Errorf("the backup has the token %s, which the configuration does not name; hint: config/keyholdd.yaml in the archive does", t.Name)
		}
	}
	if !folders {
		return nil
	}
	conf, root, err := hsm.SoftHSM()
	if err != nil {
		return fmt.Errorf("SoftHSM's configuration %s: %w; hint: config/softhsm2.conf in the archive is the one that was used; put it where the token's environment in the configuration says", conf, err)
	}
	if r.t.tokens, err = filepath.Abs(root); err != nil {
		return err
	}
	if found, err := exists(r.t.tokens); err != nil || !found {
		return err
	}
	for _, t := range r.m.Tokens {
		if found, err := exists(filepath.Join(r.t.tokens, t.Folder)); err != nil {
			return err
		} else if found && t.Folder != "" {
			return fmt.Errorf("%s: %w: the token %s is there; hint: stop what uses it, and move the folder away. Keep it: it may hold newer keys", filepath.Join(r.t.tokens, t.Folder), fs.ErrExist, t.Name)
		}
	}
	return r.noSuchLabels(ctx)
}

// noSuchLabels refuses a second token of a label: the configuration would not
// tell them apart.
func (r *restorer) noSuchLabels(ctx context.Context) error {
	libraries := make(modules)
	for _, c := range r.o.Config.Tokens {
		i := slices.IndexFunc(r.m.Tokens, func(t TokenFacts) bool { return t.Name == c.Name && t.Folder != "" })
		if i < 0 {
			continue
		}
		cfg, err := c.HSM()
		if err != nil {
			return fmt.Errorf("token %s: %w", c.Name, err)
		}
		info, err := libraries.inspect(ctx, cfg.Module)
		if err != nil {
			return fmt.Errorf("token %s: %w", c.Name, err)
		}
		for _, s := range info.Slots {
			if names(cfg, s) {
				return fmt.Errorf("%w: a token with label %q and serial number %s is in %s; hint: stop what uses it, and move its folder away. Keep it: it may hold newer keys", fs.ErrExist, s.Label, s.Serial, r.t.tokens)
			}
		}
	}
	return nil
}

// staged returns where the entry of that name is made ready; "" where it is only
// checked.
func (r *restorer) staged(name string) string {
	folder, rest, _ := strings.Cut(name, "/")
	switch folder + "/" {
	case storeFolder:
		return filepath.Join(r.t.stage(r.t.data), rest)
	case auditFolder:
		if !r.o.KeepJournal {
			return filepath.Join(r.t.stage(r.t.audit), rest)
		}
	case tokensFolder:
		if !r.o.KeepTokens {
			return filepath.Join(r.t.stage(r.t.tokens), "tokens", rest)
		}
	}
	return ""
}

// extract writes all files of the archive to the stages, and syncs them.
func (r *restorer) extract(ctx context.Context, a *reader) error {
	folders := map[string]bool{}
	for _, f := range r.m.Files {
		path := r.staged(f.Name)
		if path == "" {
			if err := a.extract(ctx, f, io.Discard); err != nil {
				return err
			}
			continue
		}
		dir := filepath.Dir(path)
		if !folders[dir] {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return err
			}
			folders[dir] = true
		}
		if err := createFile(path, func(w *os.File) error { return a.extract(ctx, f, w) }); err != nil {
			return err
		}
	}
	if err := r.lockFiles(); err != nil {
		return err
	}
	for dir := range folders {
		if err := errors.Join(syncDir(dir), syncDir(filepath.Dir(dir))); err != nil {
			return err
		}
	}
	return a.end()
}

// lockFiles makes the empty lock files of a SoftHSM token's objects, which a
// backup does not hold: SoftHSM 2.6.1 removes an object's lock file with it, and
// where there is none C_DestroyObject fails, with the object half gone.
func (r *restorer) lockFiles() error {
	for _, f := range r.m.Files {
		path := r.staged(f.Name)
		object, ok := strings.CutSuffix(path, ".object")
		if !ok || !strings.HasPrefix(f.Name, tokensFolder) {
			continue
		}
		f, err := os.OpenFile(object+".lock", os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// store checks the staged store, and brings its schema up to date.
func (r *restorer) store(ctx context.Context) error {
	s, err := sqlite.Open(ctx, r.t.stage(r.t.data), sqlite.Options{Program: r.o.Program})
	if err != nil {
		return fmt.Errorf("the backup's store: %w", err)
	}
	err = s.Check(ctx)
	var snapshot *kms.Snapshot
	if err == nil {
		snapshot, err = s.Snapshot(ctx)
	}
	if err == nil && (s.Instance() != r.m.Store.Instance || len(snapshot.Keys) != r.m.Store.Keys) {
		err = fmt.Errorf("%w: it is of installation %s with %d keys, the manifest says %s with %d", ErrDamaged, s.Instance(), len(snapshot.Keys), r.m.Store.Instance, r.m.Store.Keys)
	}
	if err = errors.Join(err, s.Close()); err != nil {
		return fmt.Errorf("the backup's store: %w", err)
	}
	r.keys = snapshot.Keys
	for _, k := range snapshot.Keys {
		if k.State == keyholdv1.KeyState_KEY_STATE_PENDING_DELETION {
			r.out.Pending = append(r.out.Pending, k)
		}
	}
	r.out.Unserved = unserved(r.o.Config, snapshot.Keys)
	return nil
}

// tokens opens the staged tokens, and those of other makes where they are, and
// wants each key to be there.
func (r *restorer) tokens(ctx context.Context) error {
	if r.o.SkipTokens {
		return nil
	}
	restore := func() {}
	if r.t.tokens != "" {
		var err error
		if restore, err = stageConfig(r.t.stage(r.t.tokens)); err != nil {
			return err
		}
	}
	defer restore()
	var err error
	if r.out.Orphans, err = compare(ctx, r.o.Config, r.m.Store.Instance, r.keys); err != nil {
		return fmt.Errorf("look whether the tokens hold the keys: %w; hint: --skip-token-check leaves this out", err)
	}
	return r.missing()
}

// missing wants all keys to be in their tokens but those that were destroyed while the
// backup was made.
func (r *restorer) missing() error {
	var missing []string
	for _, o := range r.out.Orphans {
		if o.Kind == kms.OrphanRecord && !slices.Contains(r.m.Destroyed, string(o.KeyID)) {
			missing = append(missing, string(o.KeyID))
		}
	}
	if len(missing) == 0 || r.o.AllowMissing {
		return nil
	}
	shown := missing[:min(len(missing), 10)]
	return fmt.Errorf("%w: %d of %d, among them %s; hint: make sure that the configuration names the right token and that its own backup was restored first. Keys that were destroyed since the backup are missing rightly: --allow-missing-keys restores their records, and they stay unavailable",
		ErrMissing, len(missing), len(r.keys), strings.Join(shown, ", "))
}

// unknown makes the store careful about what it cannot know: how often keys were
// used since, which deletions were cancelled, and which access keys may sign.
func (r *restorer) unknown(ctx context.Context) error {
	s, err := sqlite.Open(ctx, r.t.stage(r.t.data), sqlite.Options{Program: r.o.Program})
	if err != nil {
		return err
	}
	r.out.Versions, err = s.RaiseSeals(ctx, r.out.SealedSince, maxSeals)
	for _, k := range r.keys {
		for _, v := range k.Versions {
			if err != nil || v.Locator.Spec != keyholdv1.KeySpec_KEY_SPEC_SYMMETRIC_DEFAULT {
				continue
			}
			var n uint64
			if n, err = s.SealCount(ctx, v.Ref); n >= maxSeals {
				r.out.Spent++
			}
		}
	}
	if err == nil {
		// The clock has jumped since this tick: nothing is destroyed until an
		// operator has confirmed the clock, and could look at the deletions first.
		err = s.Tick(ctx, r.m.Created.Add(-heldTick))
	}
	if err == nil {
		err = r.accessKeys(ctx, s)
	}
	if err = errors.Join(err, s.Close()); err != nil {
		return err
	}
	// What is moved is the database alone: its log must have been folded into it.
	if left, err := exists(s.Path() + "-wal"); err != nil || left {
		return errors.Join(err, fmt.Errorf("%s-wal was not folded into the database", s.Path()))
	}
	return nil
}

// accessKeys makes all access keys inactive, unless they are to stay as they are.
func (r *restorer) accessKeys(ctx context.Context, s *sqlite.Store) error {
	all, err := s.AccessKeys(ctx)
	if err != nil {
		return err
	}
	for _, k := range all {
		if !k.Active {
			continue
		}
		r.out.AccessKeys = append(r.out.AccessKeys, AccessKey{ID: k.ID, Principal: k.Principal})
		if r.o.KeepAccessKeys {
			continue
		}
		k.Active = false
		if err := s.UpdateAccessKey(ctx, k); err != nil {
			return err
		}
	}
	return nil
}

// heldTick is how far before the backup the restored clock's tick is: more than
// the hour that holds deletions.
const heldTick = 24 * time.Hour

// moves lists what goes where. Tokens first, the store last: without it there is
// no installation.
func (r *restorer) moves() ([]move, error) {
	var moves []move
	done := make(map[string]bool)
	for _, t := range r.m.Tokens {
		if t.Folder != "" && !done[t.Folder] && !r.o.KeepTokens {
			done[t.Folder] = true
			moves = append(moves, move{From: filepath.Join(r.t.stage(r.t.tokens), "tokens", t.Folder), To: filepath.Join(r.t.tokens, t.Folder)})
		}
	}
	if !r.o.KeepJournal {
		entries, err := os.ReadDir(r.t.stage(r.t.audit))
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			// The journal's next segment, if it has made one, it makes again.
			if e.Name() == audit.HeadName || strings.HasSuffix(e.Name(), ".khj") {
				moves = append(moves, move{From: filepath.Join(r.t.stage(r.t.audit), e.Name()), To: filepath.Join(r.t.audit, e.Name())})
			}
		}
	}
	moves = append(moves, move{From: filepath.Join(r.t.stage(r.t.data), sqlite.FileName), To: filepath.Join(r.t.data, sqlite.FileName)})
	for _, m := range moves {
		r.out.Places = append(r.out.Places, m.To)
	}
	return moves, nil
}
