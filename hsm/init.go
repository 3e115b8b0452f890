package hsm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/miekg/pkcs11"
)

// initTimeout bounds InitToken and InspectModule where the context does not.
const initTimeout = time.Minute

// InitConfig says which token InitToken makes. The PINs stay the caller's, who zeroes them.
type InitConfig struct {
	Module         string // absolute path of the PKCS#11 library
	Label          string // 1 to 32 bytes
	SOPIN, UserPIN []byte
}

// InitToken makes a new token in the module's first free slot: it gives it the label and both PINs. It returns the token's serial number, and
// refuses when a token with that label exists. On SoftHSM the new token is durable when it returns nil. It never touches an initialised token.
//
// It may be called in a process that has tokens of the module open. When ctx ends first the work goes on in the background, as far as it gets.
func InitToken(ctx context.Context, cfg InitConfig) (serial string, err error) {
	switch {
	case !filepath.IsAbs(cfg.Module):
		return "", fmt.Errorf("hsm: module %q: give the absolute path of the library", cfg.Module)
	case cfg.Label == "" || len(cfg.Label) > maxLabelBytes:
		return "", fmt.Errorf("hsm: token label %q: 1 to %d bytes are wanted", cfg.Label, maxLabelBytes)
	case len(cfg.SOPIN) == 0 || len(cfg.UserPIN) == 0 || len(cfg.SOPIN) > maxPINBytes || len(cfg.UserPIN) > maxPINBytes:
		return "", fmt.Errorf("hsm: both PINs must have 1 to %d bytes", maxPINBytes)
	}
	so, user := own(cfg.SOPIN), own(cfg.UserPIN)
	return visiting(ctx, cfg.Module, func(m *module) (string, error) {
		defer clear(so)
		defer clear(user)
		return initToken(ctx, m, cfg.Label, so, user)
	})
}

// visiting runs fn inside a module that it keeps initialised meanwhile, in a goroutine of its own since the library may hang.
func visiting[T any](ctx context.Context, path string, fn func(m *module) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, initTimeout)
	defer cancel()
	type outcome struct {
		v   T
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		var o outcome
		m := acquireModule(path)
		if _, o.err = m.visit(ctx); o.err == nil {
			o.v, o.err = fn(m)
			m.leave()
		}
		o.err = errors.Join(o.err, m.release())
		done <- o
	}()
	select {
	case o := <-done:
		return o.v, o.err
	case <-ctx.Done():
		var zero T
		return zero, fmt.Errorf("hsm: PKCS#11 module %s has not answered: %w", path, ctx.Err())
	}
}

func initToken(ctx context.Context, m *module, label string, so, user []byte) (string, error) {
	slot, err := freeSlot(m, label)
	if err != nil {
		return "", err
	}
	if ctx.Err() != nil {
		return "", ended(ctx, "InitToken")
	}
	if err := m.direct.initToken(slot, so, label); err != nil {
		return "", callError("C_InitToken", err)
	}
	h, err := m.p.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		return "", callError("C_OpenSession", err)
	}
	s := &session{p: m.p, h: h, c: &conn{m: m}}
	defer func() { _ = m.p.CloseSession(h) }()
	if err := s.loginAs(pkcs11.CKU_SO, so); err != nil {
		return "", callError("C_Login", err)
	}
	defer func() { _ = m.p.Logout(h) }()
	if err := m.direct.initPIN(s.h, user); err != nil {
		return "", callError("C_InitPIN", err)
	}
	info, err := m.p.GetTokenInfo(slot)
	if err != nil {
		return "", callError("C_GetTokenInfo", err)
	}
	serial := trimPadding(info.SerialNumber)
	if trimPadding(info.ManufacturerID) != softhsmMaker {
		return serial, nil
	}
	dir, err := softhsmTokenDir(m.conf(), serial)
	if err != nil {
		return serial, fmt.Errorf("the new token %q works, but its folder could not be synced: %w", label, err)
	}
	d := &durable{dir: dir, fsync: (*os.File).Sync}
	return serial, errors.Join(d.sync(), d.syncDir(filepath.Dir(dir)))
}

// freeSlot finds a slot whose token is not initialised, and refuses when the label is taken.
func freeSlot(m *module, label string) (uint, error) {
	slots, err := m.p.GetSlotList(true)
	if err != nil {
		return 0, callError("C_GetSlotList", err)
	}
	var free []uint
	for _, slot := range slots {
		info, err := m.p.GetTokenInfo(slot)
		if err != nil {
			return 0, callError("C_GetTokenInfo", err)
		}
		switch {
		case info.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0:
			free = append(free, slot)
		case trimPadding(info.Label) == label:
			return 0, fmt.Errorf("hsm: module %s has a token with label %q already; it is left alone", m.path, label)
		}
	}
	if len(free) == 0 {
		return 0, fmt.Errorf("hsm: module %s has no free slot for a new token", m.path)
	}
	return free[0], nil
}

// conf returns SoftHSM's configuration as of C_Initialize.
func (m *module) conf() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.softhsmConf
}
