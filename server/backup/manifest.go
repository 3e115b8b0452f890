package backup

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/keyhold/keyhold/server/audit"
	"github.com/keyhold/keyhold/server/store/sqlite"
)

const (
	formatName    = "keyhold-backup"
	formatVersion = 1

	manifestName = "manifest.json"
	sumName      = "manifest.sha256"

	// maxManifestBytes bounds a manifest: some 180 bytes for each of a token's
	// objects.
	maxManifestBytes = 256 << 20
	// maxFiles bounds the entries of an archive.
	maxFiles = 1 << 20
	// maxFacts bounds the manifest's lists of tokens and of what is elsewhere.
	maxFacts = 1 << 16
	// maxKeyIDBytes bounds a key's id, a UUID.
	maxKeyIDBytes = 64
	// maxTokenFileBytes bounds a file of a SoftHSM token; the largest objects
	// have some 4 KiB.
	maxTokenFileBytes = 1 << 20
	// maxConfigFileBytes bounds a file of the configuration.
	maxConfigFileBytes = 1 << 20
)

// ErrNewerFormat says that a newer program has made the backup.
var ErrNewerFormat = errors.New("made by a newer version")

// ErrDamaged says that an archive is not what was written.
var ErrDamaged = errors.New("backup is damaged")

// Manifest says what is in a backup. It is the archive's first entry.
type Manifest struct {
	Format  string    `json:"format"`
	Version int       `json:"version"`
	Program string    `json:"program"`
	Created time.Time `json:"created"` // when the store was copied, UTC

	Store   StoreFacts   `json:"store"`
	Journal JournalFacts `json:"journal"`
	Tokens  []TokenFacts `json:"tokens"`

	// Secrets tells that PIN files and the server's TLS key are in it.
	Secrets bool `json:"secrets"`
	// Elsewhere names what the installation needs and the backup lacks.
	Elsewhere []string `json:"elsewhere"`

	// Destroyed are the keys of the store whose waiting period ended while the backup
	// was made: their material may be missing rightly.
	Destroyed []string `json:"destroyed,omitempty"`

	// Files are the archive's other entries, in their order.
	Files []File `json:"files"`
}

// StoreFacts are what the copied store holds.
type StoreFacts struct {
	Instance string `json:"instance"`
	Schema   int    `json:"schema"`
	Keys     int    `json:"keys"`
	Aliases  int    `json:"aliases"`
}

// JournalFacts say from where to where the journal reaches. Points are anchors,
// COUNT:HASH.
type JournalFacts struct {
	ID    string `json:"id"`
	First string `json:"first"`
	// AtStore is a point that was on the disk before the store was copied: changes
	// recorded beyond it may not be in the store.
	AtStore string `json:"at_store"`
	End     string `json:"end"`
}

// TokenFacts describe a token of the configuration.
type TokenFacts struct {
	Name   string `json:"name"` // in the configuration
	Label  string `json:"label"`
	Serial string `json:"serial"`
	// Folder is the SoftHSM token's, whose files are in the backup. Empty: the
	// token is backed up with its vendor's tools.
	Folder string `json:"folder,omitempty"`
	// Keys is how many versions of keys must be in the token.
	Keys int `json:"keys"`
}

// File is one entry of the archive.
type File struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
	// From is where it was.
	From string `json:"from"`
}

// Folders of an archive.
const (
	storeFolder  = "store/"
	auditFolder  = "audit/"
	tokensFolder = "tokens/"
	configFolder = "config/"
)

// entryName is the grammar of what an archive may hold. There is no way out of
// the folders in it: no name begins with a dot or a slash.
//
//nolint:gochecknoglobals // compiled once; never changed
var entryName = regexp.MustCompile(`^(store/` + regexp.QuoteMeta(sqlite.FileName) +
	`|audit/(head|journal-[0-9]{20}\.khj)` +
	`|tokens/[0-9a-f-]{36}/(generation|[0-9a-z-]{1,64}\.object)` +
	`|config/[0-9a-z][0-9a-z.-]{0,63})$`)

// limit returns how large a file of that name may be, in bytes.
func limit(name string) int64 {
	switch {
	case strings.HasPrefix(name, tokensFolder):
		return maxTokenFileBytes
	case strings.HasPrefix(name, configFolder):
		return maxConfigFileBytes
	}
	return 1 << 50 // the file system's free space is the limit
}

// encode returns the manifest's bytes.
func (m *Manifest) encode() ([]byte, error) {
	b, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	return append(b, '\n'), nil
}

// parseManifest reads and checks a manifest.
func parseManifest(b []byte) (*Manifest, error) {
	// The version first: a newer one may have members that this program lacks.
	var head struct {
		Format  string `json:"format"`
		Version int    `json:"version"`
		Program string `json:"program"`
	}
	if err := json.Unmarshal(b, &head); err != nil || head.Format != formatName {
		return nil, fmt.Errorf("%w: it does not begin with the manifest of a Keyhold backup", ErrDamaged)
	}
	if head.Version > formatVersion {
		return nil, fmt.Errorf("backup is %w: format %d by %s, this program knows %d; hint: restore with that version or a later one",
			ErrNewerFormat, head.Version, head.Program, formatVersion)
	}
	m := &Manifest{}
	if err := json.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("%w: manifest: %w", ErrDamaged, err)
	}
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("%w: manifest: %w", ErrDamaged, err)
	}
	return m, nil
}

// UnmarshalJSON reads a manifest, its lists element by element: an element may take
// many times the memory of its three bytes, and a list is left at the first that is
// wrong, or one too many. Unknown members are errors.
func (m *Manifest) UnmarshalJSON(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return errors.Join(errors.New("it is no object"), err)
	}
	members := map[string]func() error{
		"format":    func() error { return d.Decode(&m.Format) },
		"version":   func() error { return d.Decode(&m.Version) },
		"program":   func() error { return d.Decode(&m.Program) },
		"created":   func() error { return d.Decode(&m.Created) },
		"store":     func() error { return d.Decode(&m.Store) },
		"journal":   func() error { return d.Decode(&m.Journal) },
		"secrets":   func() error { return d.Decode(&m.Secrets) },
		"tokens":    func() error { return decodeList(d, &m.Tokens, maxFacts, nil) },
		"elsewhere": func() error { return decodeList(d, &m.Elsewhere, maxFacts, nil) },
		"destroyed": func() error { return decodeList(d, &m.Destroyed, maxFiles, checkDestroyed) },
		"files":     func() error { return decodeList(d, &m.Files, maxFiles, File.check) },
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return err
		}
		text, _ := name.(string) // members have names
		decode := members[text]
		if decode == nil {
			return fmt.Errorf("unknown member %q", text)
		}
		if err := decode(); err != nil {
			return fmt.Errorf("%s: %w", text, err)
		}
	}
	return nil
}

// decodeList reads a list of at most that many elements, with a check of each that is
// optional.
func decodeList[T any](d *json.Decoder, list *[]T, most int, check func(T) error) error {
	*list = nil
	t, err := d.Token()
	if err != nil || t == nil {
		return err
	}
	if t != json.Delim('[') {
		return errors.New("it is no list")
	}
	for d.More() {
		if len(*list) == most {
			return fmt.Errorf("more than %d elements", most)
		}
		var element T
		if err := d.Decode(&element); err != nil {
			return err
		}
		if check != nil {
			if err := check(element); err != nil {
				return err
			}
		}
		*list = append(*list, element)
	}
	_, err = d.Token()
	return err
}

func (m *Manifest) check() error {
	if m.Version != formatVersion || m.Created.IsZero() {
		return fmt.Errorf("format %d of %s", m.Version, m.Created)
	}
	var counts []uint64
	for _, a := range []string{m.Journal.First, m.Journal.AtStore, m.Journal.End} {
		at, err := audit.ParseAnchor(a)
		if err != nil {
			return err
		}
		counts = append(counts, at.Count)
	}
	if counts[1] > counts[2] {
		return fmt.Errorf("the audit log ends at %s, before %s", m.Journal.End, m.Journal.AtStore)
	}
	// Of a manifest that was read, they are known to be.
	if max(len(m.Files), len(m.Destroyed)) > maxFiles || max(len(m.Tokens), len(m.Elsewhere)) > maxFacts {
		return fmt.Errorf("%d files and %d destroyed keys, at most %d are allowed", len(m.Files), len(m.Destroyed), maxFiles)
	}
	folders := make(map[string]bool)
	for _, t := range m.Tokens {
		if t.Folder != "" {
			folders[t.Folder] = true
		}
	}
	seen := make(map[string]bool)
	for _, f := range m.Files {
		switch err := f.check(); {
		case err != nil:
			return err
		case seen[f.Name]:
			return fmt.Errorf("%s is there twice", f.Name)
		case strings.HasPrefix(f.Name, tokensFolder) && !folders[strings.Split(f.Name, "/")[1]]:
			return fmt.Errorf("%s belongs to no token", f.Name)
		}
		seen[f.Name] = true
	}
	for _, need := range []string{storeFolder + sqlite.FileName, auditFolder + audit.HeadName} {
		if !seen[need] {
			return fmt.Errorf("%s is missing", need)
		}
	}
	for folder := range folders {
		if !seen[tokensFolder+folder+"/token.object"] {
			return fmt.Errorf("the token in %s is missing", folder)
		}
	}
	return nil
}

// check wants an entry to be one of a backup, by itself.
func (f File) check() error {
	sum, err := hex.DecodeString(f.SHA256)
	switch {
	case !entryName.MatchString(f.Name):
		return fmt.Errorf("the file name %q is not one of a backup", f.Name)
	case f.Size < 0 || f.Size > limit(f.Name):
		return fmt.Errorf("%s has %d bytes, at most %d are allowed", f.Name, f.Size, limit(f.Name))
	case err != nil || len(sum) != sha256.Size:
		return fmt.Errorf("%s has the SHA-256 %q", f.Name, f.SHA256)
	}
	return nil
}

// checkDestroyed wants what can be a key's id.
func checkDestroyed(id string) error {
	if id == "" || len(id) > maxKeyIDBytes {
		return fmt.Errorf("%q is no key id", id)
	}
	return nil
}

// sumLine is the content of manifest.sha256, in the format of sha256sum(1).
func sumLine(manifest []byte) []byte {
	sum := sha256.Sum256(manifest)
	return []byte(hex.EncodeToString(sum[:]) + "  " + manifestName + "\n")
}
