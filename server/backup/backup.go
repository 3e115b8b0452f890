package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
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

// Options say what to back up, and where to.
type Options struct {
	Config     *server.Config
	ConfigFile string
	// Out is the archive's path; it must not exist. Empty: Stdout is written to, and
	// nothing is read back.
	Out    string
	Stdout io.Writer
	// Secrets puts PIN files and the server's TLS key into the archive.
	Secrets bool
	// SkipTokens leaves out the opening of tokens: whether each key is in them is
	// not looked at then.
	SkipTokens bool
	// Program is the name and version of the running program.
	Program string
	// Now is the clock. Optional: time.Now.
	Now func() time.Time
}

// Made is a backup that was made.
type Made struct {
	Manifest *Manifest
	// SHA256 is the manifest's, hex: kept elsewhere it tells this backup from
	// others.
	SHA256 string
	Bytes  int64
	// Lost are keys of the store whose material is not in their token.
	Lost []kms.Orphan
	// Unserved are regions with keys that the configuration does not serve: what their
	// tokens hold is not in the backup, and nobody has looked for it.
	Unserved []string
}

// unserved returns the regions of keys that the configuration does not serve.
func unserved(cfg *server.Config, keys []*kms.KeyRecord) []string {
	var regions []string
	for _, k := range keys {
		served := slices.ContainsFunc(cfg.Regions, func(c server.RegionConfig) bool { return kms.Region(c.Name) == k.Region })
		if !served && !slices.Contains(regions, string(k.Region)) {
			regions = append(regions, string(k.Region))
		}
	}
	return regions
}

// stagePrefix begins the name of the folder in which a backup is made, beside
// the archive. What a killed process left of it can be deleted.
const stagePrefix = ".keyhold-backup-"

// Make makes a backup. When it returns nil, the archive is whole, on the disk,
// and was read back; after an error there is none. What went to Stdout is whole, no
// more; after an error, or when ctx ends, a part of it may have been written, and
// until a write to Stdout that nobody reads ends, it goes on in the background. It sets SOFTHSM2_CONF and what
// else the configuration sets for tokens, and no other code of the process may
// use PKCS#11 meanwhile.
func Make(ctx context.Context, o Options) (*Made, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	parent := os.TempDir()
	if o.Out != "" {
		parent = filepath.Dir(o.Out)
		if found, err := exists(o.Out); err != nil {
			return nil, err
		} else if found {
			return nil, taken(o.Out)
		}
	}
	stage, err := os.MkdirTemp(parent, stagePrefix) // mode 0700
	if err != nil {
		return nil, fmt.Errorf("make a folder for the backup: %w", err)
	}
	// SoftHSM wants an absolute path.
	if stage, err = filepath.Abs(stage); err != nil {
		return nil, err
	}
	m := maker{o: o, stage: stage}
	made, err := m.make(ctx)
	if rmErr := os.RemoveAll(stage); rmErr != nil {
		err = errors.Join(err, fmt.Errorf("remove the folder of the backup: %w", rmErr))
	}
	return made, err
}

type maker struct {
	o        Options
	stage    string
	manifest Manifest
	sources  []source
	keys     []*kms.KeyRecord
	tokens   []*token
	lost     []kms.Orphan
}

func (m *maker) make(ctx context.Context) (*Made, error) {
	m.manifest = Manifest{Format: formatName, Version: formatVersion, Program: m.o.Program, Secrets: m.o.Secrets, Tokens: []TokenFacts{}, Elsewhere: []string{}}
	if err := setEnvironment(m.o.Config); err != nil {
		return nil, err
	}
	atStore, err := audit.Durable(ctx, m.o.Config.Audit.Dir)
	if errors.Is(err, audit.ErrNoJournal) {
		err = fmt.Errorf("%w; hint: where there are segments, start the daemon once, it makes a new one", err)
	}
	if err != nil {
		return nil, err
	}
	m.manifest.Journal.AtStore = atStore.String()
	for _, step := range []func(context.Context) error{m.store, m.copyTokens, m.checkTokens, m.journal, m.configuration} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	for i := range m.sources {
		if err := m.sources[i].hash(ctx); err != nil {
			return nil, err
		}
		m.manifest.Files = append(m.manifest.Files, m.sources[i].File)
	}
	if err := m.manifest.check(); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	return m.write(ctx)
}

// add adds a file to the archive.
func (m *maker) add(name, path, from string, size int64) {
	m.sources = append(m.sources, source{File: File{Name: name, Size: size, From: from}, path: path})
}

// store copies the store, step 1, and reads the copy.
func (m *maker) store(ctx context.Context) (err error) {
	r, err := sqlite.OpenReadOnly(ctx, m.o.Config.DataDir, sqlite.Options{})
	if err != nil {
		return err
	}
	defer r.Close() // nothing was written
	dir := filepath.Join(m.stage, "store")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	m.manifest.Created = m.o.Now().UTC()
	if err := r.CopyTo(ctx, dir); err != nil {
		return err
	}
	c, err := sqlite.OpenReadOnly(ctx, dir, sqlite.Options{})
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Check(ctx); err != nil {
		return err
	}
	snapshot, err := c.Snapshot(ctx)
	if err != nil {
		return err
	}
	m.keys = snapshot.Keys
	m.manifest.Store = StoreFacts{Instance: c.Instance(), Schema: c.Schema(), Keys: len(snapshot.Keys), Aliases: len(snapshot.Aliases)}
	path := filepath.Join(dir, sqlite.FileName)
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	m.add(storeFolder+sqlite.FileName, path, r.Path(), info.Size())
	return nil
}

// copyTokens copies the folders of SoftHSM tokens, step 2.
func (m *maker) copyTokens(ctx context.Context) (err error) {
	if m.tokens, err = findTokens(ctx, m.o.Config); err != nil {
		return err
	}
	for _, t := range m.tokens {
		facts := TokenFacts{Name: t.name, Label: t.slot.Label, Serial: t.slot.Serial, Keys: m.keysIn(t.name)}
		if t.softhsm() {
			from, err := hsm.SoftHSMTokenDir(t.slot.Serial)
			if err != nil {
				return fmt.Errorf("token %s: %w", t.name, err)
			}
			facts.Folder = filepath.Base(from)
			if err := m.copyToken(ctx, from, facts.Folder); err != nil {
				return fmt.Errorf("copy token %s: %w", t.name, err)
			}
		} else {
			m.manifest.Elsewhere = append(m.manifest.Elsewhere, "the objects of the token "+t.name+": its vendor's backup")
		}
		m.manifest.Tokens = append(m.manifest.Tokens, facts)
	}
	return nil
}

func (m *maker) copyToken(ctx context.Context, from, folder string) error {
	to := filepath.Join(m.stage, "tokens", folder)
	if found, err := exists(to); err != nil || found {
		return err // two names of one token
	}
	if err := copyTokenFolder(ctx, from, to); err != nil {
		return err
	}
	entries, err := os.ReadDir(to)
	if err != nil {
		return err
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return err
		}
		m.add(tokensFolder+folder+"/"+e.Name(), filepath.Join(to, e.Name()), filepath.Join(from, e.Name()), info.Size())
	}
	return nil
}

// keysIn counts the versions of keys that a token must hold.
func (m *maker) keysIn(name string) (n int) {
	for _, r := range m.o.Config.Regions {
		for _, k := range m.keys {
			if r.Token == name && k.Region == kms.Region(r.Name) && k.KeyStore == "" {
				n += len(k.Versions)
			}
		}
	}
	return n
}

// checkTokens opens the copied tokens, and those of other makes, and wants each
// key of the copied store to be there.
func (m *maker) checkTokens(ctx context.Context) error {
	if m.o.SkipTokens {
		return m.destroyed(ctx)
	}
	restore := func() {}
	if slices.ContainsFunc(m.tokens, (*token).softhsm) {
		var err error
		if restore, err = stageConfig(m.stage); err != nil {
			return err
		}
	}
	defer restore()
	orphans, err := compare(ctx, m.o.Config, m.manifest.Store.Instance, m.keys)
	if err != nil {
		return fmt.Errorf("look whether the tokens hold the keys: %w; hint: --skip-token-check leaves this out", err)
	}
	if err := m.destroyed(ctx); err != nil {
		return err
	}
	for _, o := range orphans {
		if o.Kind == kms.OrphanRecord && !slices.Contains(m.manifest.Destroyed, string(o.KeyID)) {
			m.lost = append(m.lost, o)
		}
	}
	return nil
}

// destroyed notes the keys whose waiting period ended since the store was copied: the
// tokens, or the copies of them, may lack them rightly.
func (m *maker) destroyed(ctx context.Context) error {
	r, err := sqlite.OpenReadOnly(ctx, m.o.Config.DataDir, sqlite.Options{})
	if err != nil {
		return err
	}
	defer r.Close() // nothing was written
	for _, k := range m.keys {
		if k.State != keyholdv1.KeyState_KEY_STATE_PENDING_DELETION {
			continue
		}
		now, err := r.Key(ctx, k.ID)
		switch {
		case errors.Is(err, kms.ErrNotFound), err == nil && now.Destroying:
			m.manifest.Destroyed = append(m.manifest.Destroyed, string(k.ID))
		case err != nil:
			return err
		}
	}
	return nil
}

// journal takes the journal up to a point that is on the disk, step 3.
func (m *maker) journal(ctx context.Context) error {
	dir := m.o.Config.Audit.Dir
	span, err := audit.Settle(ctx, dir)
	if err != nil {
		return err
	}
	m.manifest.Journal.ID, m.manifest.Journal.First, m.manifest.Journal.End = span.Journal, span.First.String(), span.End.String()
	for _, s := range span.Segments {
		path := filepath.Join(dir, s.Name)
		m.add(auditFolder+s.Name, path, path, s.Size)
	}
	head := filepath.Join(m.stage, audit.HeadName)
	if err := os.WriteFile(head, span.Head, 0o600); err != nil {
		return err
	}
	m.add(auditFolder+audit.HeadName, head, filepath.Join(dir, audit.HeadName), int64(len(span.Head)))
	return nil
}

// configuration adds the configuration and what it names: certificates, which
// are public, and secrets only where they were asked for.
func (m *maker) configuration(context.Context) error {
	c := m.o.Config
	if err := m.addConfig("keyholdd.yaml", m.o.ConfigFile, false); err != nil {
		return err
	}
	if slices.ContainsFunc(m.tokens, (*token).softhsm) {
		if conf, _, err := hsm.SoftHSM(); err != nil {
			return err
		} else if err := m.addConfig("softhsm2.conf", conf, false); err != nil {
			return err
		}
	}
	for _, f := range []struct {
		name, path string
		secret     bool
	}{
		{"server-cert.pem", c.GRPC.Cert, false},
		{"client-ca.pem", c.GRPC.ClientCA, false},
		{"server-key.pem", c.GRPC.Key, true},
		{"aws-cert.pem", c.AWS.Cert, false},
		{"aws-key.pem", c.AWS.Key, true},
	} {
		if f.path == "" {
			continue // the AWS door need not have any
		}
		if err := m.addConfig(f.name, f.path, f.secret); err != nil {
			return err
		}
	}
	for i, t := range m.tokens {
		source := t.cfg.PIN.String()
		path, isFile := strings.CutPrefix(source, "file:")
		if !isFile {
			m.manifest.Elsewhere = append(m.manifest.Elsewhere, "the PIN of the token "+t.name+": "+source)
			continue
		}
		if err := m.addConfig(fmt.Sprintf("token-%d.pin", i), path, true); err != nil {
			return err
		}
	}
	return nil
}

func (m *maker) addConfig(name, path string, secret bool) error {
	if secret && !m.o.Secrets {
		m.manifest.Elsewhere = append(m.manifest.Elsewhere, path)
		return nil
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	info, err := os.Stat(abs)
	if err != nil {
		return fmt.Errorf("read what the configuration names: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxConfigFileBytes {
		return fmt.Errorf("%s is no file, or larger than %d bytes", abs, maxConfigFileBytes)
	}
	m.add(configFolder+strings.ToLower(name), abs, abs, info.Size())
	return nil
}

// write writes the archive, reads it back, and gives it its name.
func (m *maker) write(ctx context.Context) (*Made, error) {
	manifest, err := m.manifest.encode()
	if err != nil {
		return nil, err
	}
	made := &Made{Manifest: &m.manifest, SHA256: string(sumLine(manifest)[:64]), Lost: m.lost, Unserved: unserved(m.o.Config, m.keys)}
	if m.o.Out == "" {
		made.Bytes, err = m.stream(ctx, manifest)
		return made, err
	}
	temp := filepath.Join(m.stage, "archive")
	err = createFile(temp, func(f *os.File) error {
		if err := writeArchive(ctx, f, manifest, m.manifest.Created, m.sources); err != nil {
			return err
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return err
		}
		return readBack(ctx, f)
	})
	if err != nil {
		return nil, fmt.Errorf("write the backup: %w", err)
	}
	info, err := os.Stat(temp)
	if err != nil {
		return nil, err
	}
	made.Bytes = info.Size()
	if err := publish(temp, m.o.Out); err != nil {
		return nil, err
	}
	return made, nil
}

// stream writes the archive to Stdout. A write to a pipe that nobody reads does not
// end with ctx: it is left alone then, so that the stage is removed.
func (m *maker) stream(ctx context.Context, manifest []byte) (bytes int64, err error) {
	counted := &counter{w: m.o.Stdout}
	written := make(chan error, 1)
	go func() { written <- writeArchive(ctx, counted, manifest, m.manifest.Created, m.sources) }()
	select {
	case err := <-written:
		return counted.n, err
	case <-ctx.Done():
		return 0, fmt.Errorf("write the backup: %w", ctx.Err())
	}
}

// readBack reads a whole archive, as Restore does.
func readBack(ctx context.Context, r io.Reader) error {
	a, err := openArchive(r, "")
	if err != nil {
		return err
	}
	for _, f := range a.manifest.Files {
		if err := a.extract(ctx, f, io.Discard); err != nil {
			return err
		}
	}
	return a.end()
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
