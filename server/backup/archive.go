package backup

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// source is a file that goes into an archive: the first Size bytes of path.
type source struct {
	File
	path string
}

// hash fills in the SHA-256 of a source.
func (s *source) hash(ctx context.Context) error {
	f, err := os.Open(s.path)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if n, err := io.Copy(h, contextReader{ctx, io.LimitReader(f, s.Size)}); err != nil || n != s.Size {
		return fmt.Errorf("read %s: %d of %d bytes: %w", s.path, n, s.Size, errors.Join(err, ctx.Err()))
	}
	s.SHA256 = hex.EncodeToString(h.Sum(nil))
	return nil
}

// contextReader stops reading when ctx ends.
type contextReader struct {
	ctx context.Context //nolint:containedctx // it lives for one io.Copy
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// writeArchive writes manifest and sources. A source that is not what the
// manifest says any more is an error.
func writeArchive(ctx context.Context, w io.Writer, manifest []byte, when time.Time, sources []source) error {
	tw := tar.NewWriter(w)
	header := func(name string, size int64) error {
		return tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, ModTime: when.Truncate(time.Second)})
	}
	for _, e := range []struct {
		name    string
		content []byte
	}{{manifestName, manifest}, {sumName, sumLine(manifest)}} {
		if err := header(e.name, int64(len(e.content))); err != nil {
			return err
		}
		if _, err := tw.Write(e.content); err != nil {
			return err
		}
	}
	for i := range sources {
		s := &sources[i]
		if err := header(s.Name, s.Size); err != nil {
			return err
		}
		if err := s.writeTo(ctx, tw); err != nil {
			return fmt.Errorf("write %s: %w", s.Name, err)
		}
	}
	return tw.Close()
}

func (s *source) writeTo(ctx context.Context, w io.Writer) error {
	f, err := os.Open(s.path)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(w, h), contextReader{ctx, io.LimitReader(f, s.Size)})
	if err == nil && (n != s.Size || hex.EncodeToString(h.Sum(nil)) != s.SHA256) {
		err = fmt.Errorf("%s changed while it was read; hint: was the audit log archived meanwhile? make the backup again", s.path)
	}
	return err
}

// reader reads an archive: the manifest, then what it names, in its order, and
// nothing else. So no entry can be a link, a folder, have another name or be
// larger than the manifest says, whose names are checked.
type reader struct {
	tar      *tar.Reader
	raw      io.Reader
	manifest *Manifest
	sum      string // SHA-256 of the manifest, hex
}

// openArchive reads the manifest. It is looked into only where it has the SHA-256 want,
// hex, if that is not empty.
func openArchive(r io.Reader, want string) (*reader, error) {
	a := &reader{tar: tar.NewReader(r), raw: r}
	b, err := a.small(manifestName, maxManifestBytes)
	if err != nil {
		return nil, err
	}
	sum, err := a.small(sumName, int64(len(sumLine(nil))))
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(sum, sumLine(b)) {
		return nil, fmt.Errorf("%w: the manifest is not what was written", ErrDamaged)
	}
	a.sum = string(sum[:2*sha256.Size])
	if want != "" && want != a.sum {
		return nil, fmt.Errorf("the manifest has the SHA-256 %s, and not %s: it is another backup", a.sum, want)
	}
	a.manifest, err = parseManifest(b)
	return a, err
}

// next wants the entry of that name.
func (a *reader) next(name string) (size int64, err error) {
	h, err := a.tar.Next()
	if err != nil {
		return 0, fmt.Errorf("%w: where %s should be: %w", ErrDamaged, name, noEOF(err))
	}
	if h.Name != name || h.Typeflag != tar.TypeReg {
		return 0, fmt.Errorf("%w: the entry %q of type %q is where %s should be", ErrDamaged, h.Name, h.Typeflag, name)
	}
	return h.Size, nil
}

// noEOF: the end of an archive is an error wherever it is read.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (a *reader) small(name string, most int64) ([]byte, error) {
	size, err := a.next(name)
	if err != nil {
		return nil, err
	}
	if size > most {
		return nil, fmt.Errorf("%w: %s has %d bytes, at most %d are allowed", ErrDamaged, name, size, most)
	}
	b, err := io.ReadAll(a.tar)
	if err != nil {
		return nil, fmt.Errorf("%w: read %s: %w", ErrDamaged, name, err)
	}
	return b, nil
}

// extract writes the entry of f, the next one, to w.
func (a *reader) extract(ctx context.Context, f File, w io.Writer) error {
	size, err := a.next(f.Name)
	if err != nil {
		return err
	}
	if size != f.Size {
		return fmt.Errorf("%w: %s has %d bytes, the manifest says %d", ErrDamaged, f.Name, size, f.Size)
	}
	h := sha256.New()
	// What w says, that the disk is full perhaps, is no damage.
	out := &sink{w: io.MultiWriter(h, w)}
	if _, err := io.Copy(out, contextReader{ctx, a.tar}); err != nil {
		if out.err != nil || ctx.Err() != nil {
			return fmt.Errorf("extract %s: %w", f.Name, err)
		}
		return fmt.Errorf("%w: read %s: %w", ErrDamaged, f.Name, err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != f.SHA256 {
		return fmt.Errorf("%w: %s has the SHA-256 %s, the manifest says %s", ErrDamaged, f.Name, got, f.SHA256)
	}
	return nil
}

// sink remembers what its writer said.
type sink struct {
	w   io.Writer
	err error
}

func (s *sink) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	s.err = err
	return n, err
}

// end wants the archive's end, with nothing but zeros after it.
func (a *reader) end() error {
	h, err := a.tar.Next()
	if err == nil {
		return fmt.Errorf("%w: the entry %q is not in the manifest", ErrDamaged, h.Name)
	}
	if !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	b := make([]byte, 64<<10)
	for {
		n, err := a.raw.Read(b)
		if len(bytes.Trim(b[:n], "\x00")) > 0 {
			return fmt.Errorf("%w: there is something after its end", ErrDamaged)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
	}
}
