package server

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/keyhold/keyhold/hsm"
)

// probeCache keeps in the data folder what tokens have shown that they can
// do, so that slow tokens are not probed at each start. What is in it is
// believed: who may write into the data folder may lie about a token, and
// make operations fail by it, not make them weak.
type probeCache struct {
	dir string
	log *slog.Logger
}

var _ hsm.ProbeCache = probeCache{}

func (c probeCache) path(key string) string {
	h := sha256.Sum256([]byte(key))
	return filepath.Join(c.dir, "probe-"+hex.EncodeToString(h[:8])+".json")
}

// Get is hsm.ProbeCache's.
func (c probeCache) Get(key string) ([]byte, bool) {
	b, err := os.ReadFile(c.path(key))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.log.Warn("probe cache not read", "err", err)
	}
	return b, err == nil
}

// Put is hsm.ProbeCache's.
func (c probeCache) Put(key string, value []byte) {
	temporary := c.path(key) + ".new"
	err := os.WriteFile(temporary, value, 0o600)
	if err == nil {
		err = os.Rename(temporary, c.path(key))
	}
	if err != nil {
		c.log.Warn("probe cache not written", "err", err)
	}
}
