package tokenbench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/keyhold/keyhold/hsm"
	softhsmconfig "github.com/keyhold/keyhold/softhsm-config"
)

// Temporary makes a SoftHSM token in a new folder below dir (the system's folder
// for temporary files where that is empty), for Run. It sets SOFTHSM2_CONF for
// this process. remove deletes the folder.
func Temporary(ctx context.Context, dir string) (cfg hsm.Config, remove func() error, err error) {
	if dir, err = os.MkdirTemp(dir, "keyhold-bench-token-"); err != nil {
		return cfg, nil, fmt.Errorf("a folder for a token: %w", err)
	}
	remove = func() error { return os.RemoveAll(dir) }
	defer func() {
		if err != nil {
			err = errors.Join(err, remove())
		}
	}()
	token, err := softhsmconfig.Init(ctx, softhsmconfig.Options{Dir: dir, Label: "keyhold-bench"})
	if err != nil {
		return cfg, nil, err
	}
	if err := token.Use(); err != nil {
		return cfg, nil, err
	}
	cfg = hsm.Config{Module: token.Module, TokenLabel: token.Label, PIN: hsm.PINFile(token.PINFile), ProbeCache: &probes{}}
	t, err := hsm.Open(cfg, hsm.Options{})
	if err != nil {
		return cfg, nil, err
	}
	_, err = t.EnsureCanary(ctx)
	return cfg, remove, errors.Join(err, closeToken(ctx, t))
}

// probes keeps what a token can do in memory, so that it is found out once.
type probes struct{ m sync.Map }

var _ hsm.ProbeCache = (*probes)(nil)

// Get is hsm.ProbeCache's.
func (p *probes) Get(key string) ([]byte, bool) {
	v, _ := p.m.Load(key)
	b, ok := v.([]byte)
	return b, ok
}

// Put is hsm.ProbeCache's.
func (p *probes) Put(key string, value []byte) { p.m.Store(key, value) }
