package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
)

// source is a file, or standard input, that is being read.
type source struct {
	ctx  context.Context //nolint:containedctx // of the one operation that reads it: Read has no place for it
	name string
	info fs.FileInfo // nil if nothing is known about it
	read atomic.Int64

	// opening is for what blocks until someone writes into it. It is done by
	// the first Read, which may be abandoned.
	opening bool

	mu     sync.Mutex // guards the rest: close may come while Read opens
	r      io.Reader
	file   *os.File
	closed bool
}

// openSource opens what is to be encrypted or decrypted. Links are followed: a
// source is but read. What is no regular file, or has its name among devices,
// gives no name and no permissions to another: then --out must say the target's.
func (a *app) openSource(ctx context.Context, name string, v *fileVerb) (*source, error) {
	if name == "-" {
		if a.isTerminal(a.stdin) {
			fmt.Fprintln(a.stderr, "keyhold: reading from the terminal; Ctrl-D ends it")
		}
		s := &source{ctx: ctx, name: "standard input", r: a.stdin}
		if f, ok := a.stdin.(interface{ Stat() (fs.FileInfo, error) }); ok {
			if info, err := f.Stat(); err == nil {
				s.info = info
			}
		}
		return s, nil
	}
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	switch {
	case info.IsDir():
		return nil, withHint(errors.New("is a folder"), "%s", v.folderHint)
	case !info.Mode().IsRegular() && v.out == "":
		return nil, withHint(errors.New("is not a regular file"), "say with --out where the result goes")
	case amongDevices(name) && v.out == "":
		return nil, withHint(errors.New("has no folder that the result could be in"), "say with --out where the result goes")
	case !info.Mode().IsRegular():
		return &source{ctx: ctx, name: name, info: info, opening: true}, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	if info, err = f.Stat(); err == nil && !info.Mode().IsRegular() {
		err = errors.New("was replaced by something that is not a regular file")
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &source{ctx: ctx, name: name, info: info, r: f, file: f}, nil
}

// amongDevices tells whether a file has its name where the system shows devices
// and processes, as /dev/stdin and /proc/self/fd/0 do. /dev/shm has files.
func amongDevices(name string) bool {
	dir := filepath.Dir(realPath(name)) + "/"
	return dir == "/dev/" || strings.HasPrefix(dir, "/dev/fd/") || strings.HasPrefix(dir, "/proc/")
}

// regular tells whether the source is a file with a size.
func (s *source) regular() bool { return s.info != nil && s.info.Mode().IsRegular() }

// Read reads, until the operation is cancelled.
func (s *source) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	if s.opening {
		f, err := os.Open(s.name)
		if err != nil {
			return 0, err
		}
		s.opening = false
		s.mu.Lock()
		s.r, s.file = f, f
		closed := s.closed
		s.mu.Unlock()
		if closed {
			f.Close()
		}
	}
	n, err := s.r.Read(p)
	s.read.Add(int64(n))
	return n, err
}

// close closes a file. Standard input stays as it is.
func (s *source) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.file != nil {
		s.file.Close()
	}
}

// same tells whether info is of the same file.
func (s *source) same(info fs.FileInfo) bool {
	return s.info != nil && info != nil && os.SameFile(s.info, info)
}
