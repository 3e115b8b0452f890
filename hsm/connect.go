package hsm

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"
)

// dialer returns a function that makes a connection: it finds the token, checks its flags, opens the sessions that every connection has, logs in,
// reads the names of all objects, and proves the token's abilities when that has not been done. It hangs when the library hangs.
func (t *Token) dialer(s *supervisor) func() (*conn, error) {
	return func() (*conn, error) {
		ctx, cancel := context.WithTimeout(context.Background(), t.cfg.CallTimeout)
		defer cancel()
		epoch, err := t.mod.visit(ctx)
		if err != nil {
			return nil, err
		}
		defer t.mod.leave()
		p := t.mod.p
		slot, info, err := findToken(p, t.cfg)
		if err != nil {
			return nil, err
		}
		s.sweep(epoch, slot)
		c := newConn(t, epoch, slot, info)
		if err := c.checkLimits(); err != nil {
			return nil, err
		}
		if err := c.establish(ctx, s); err != nil {
			return nil, err
		}
		return c, nil
	}
}

// establish opens the connection's sessions and starts its workers. On error it leaves nothing open.
func (c *conn) establish(ctx context.Context, sup *supervisor) (err error) {
	var opened []*session
	defer func() {
		if err != nil {
			for _, s := range opened {
				c.endSession(s.h)
			}
			c.open.Store(0)
			c.shut()
		}
	}()
	add := func(flags uint) (*session, error) {
		h, err := c.p.OpenSession(c.slot, pkcs11.CKF_SERIAL_SESSION|flags)
		if err = callError("C_OpenSession", err); classify(err) == classFull {
			return nil, fmt.Errorf("token %q has no session left, at least %d are needed: other programs hold them, or its limit is too low: %w", c.t.label, ownSessions+1, err)
		}
		if err != nil {
			return nil, err
		}
		s := &session{p: c.p, h: h, c: c, rw: flags != 0}
		opened = append(opened, s)
		c.open.Add(1)
		return s, nil
	}
	anchor, err := add(0)
	if err != nil {
		return err
	}
	if err := c.login(ctx, anchor, sup.pins); err != nil {
		return err
	}
	objects, err := add(pkcs11.CKF_RW_SESSION)
	if err != nil {
		return err
	}
	canary, err := add(0)
	if err != nil {
		return err
	}
	if c.durable, err = newDurable(c); err != nil {
		return err
	}
	c.canarySeen.Store(sup.canary == canarySight{c.info.SerialNumber, c.epoch})
	if err := c.load(canary); err != nil {
		return err
	}
	if err := c.prove(sup); err != nil {
		return err
	}
	c.t.noteConnected(c)
	c.target = c.wanted()
	c.start(laneKeeper, anchor)
	c.start(laneObjects, objects)
	c.start(laneCanary, canary)
	for range c.target {
		c.start(laneCrypto, nil)
	}
	return nil
}

// prove lets the token show what it can do, once per process and kind of token: a session of its own is used, since probes leave operations
// behind in it.
func (c *conn) prove(sup *supervisor) error {
	name := c.info.SerialNumber + "\x00" + versionText(c.info.FirmwareVersion) + "\x00" + c.info.Model
	if c.t.caps.Load() != nil && sup.probed == name {
		return nil
	}
	h, err := c.p.OpenSession(c.slot, pkcs11.CKF_SERIAL_SESSION)
	if err != nil {
		return callError("C_OpenSession", err)
	}
	defer c.endSession(h)
	caps, err := c.probe(&session{p: c.p, h: h, c: c})
	if err != nil {
		return err
	}
	c.t.caps.Store(caps)
	sup.probed = name
	return nil
}

// findToken finds the slot that the configured token is in. Slot numbers change, so this is done for every connection.
func findToken(p *pkcs11.Ctx, cfg Config) (slot uint, info pkcs11.TokenInfo, err error) {
	slots, err := p.GetSlotList(true)
	if err != nil {
		return 0, info, callError("C_GetSlotList", err)
	}
	var seen []string
	matches := 0
	for _, id := range slots {
		ti, err := p.GetTokenInfo(id)
		if err != nil {
			// Another token's trouble is not ours; and if it is this token, it is reported as not found, with the code.
			seen = append(seen, fmt.Sprintf("one that answers %s", codeLabel(callError("C_GetTokenInfo", err))))
			continue
		}
		label, serial := trimPadding(ti.Label), trimPadding(ti.SerialNumber)
		if ti.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 {
			continue
		}
		seen = append(seen, fmt.Sprintf("%q (serial number %s)", label, serial))
		if (cfg.TokenLabel == "" || cfg.TokenLabel == label) && (cfg.TokenSerial == "" || cfg.TokenSerial == serial) {
			matches++
			slot, info = id, ti
			info.Label, info.SerialNumber = label, serial
		}
	}
	switch matches {
	case 0:
		return 0, info, tokenNotFound(cfg, seen)
	case 1:
		return slot, info, nil
	}
	return 0, info, fmt.Errorf("%d tokens of module %s match; name the token by its serial number: %s", matches, cfg.Module, list(seen))
}

// trimPadding cuts the blanks that PKCS#11 pads texts with, and the zero bytes that some vendors do.
func trimPadding(s string) string { return strings.TrimRight(s, " \x00") }

// list names things in a sentence, not too many.
func list(names []string) string {
	const most = 10
	switch {
	case len(names) == 0:
		return "none"
	case len(names) > most:
		return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", len(names)-most)
	}
	return strings.Join(names, ", ")
}

func versionText(v pkcs11.Version) string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

// login logs the user in where that has not happened. Every session of the process and token shares the login.
func (c *conn) login(ctx context.Context, s *session, pins *pinGuard) error {
	if c.info.Flags&pkcs11.CKF_LOGIN_REQUIRED == 0 {
		return nil
	}
	// Serial for all tokens of the module: vendors' libraries count wrong PINs across sessions, and not all of them count safely.
	if err := lock(ctx, c.m.login); err != nil {
		return err
	}
	defer func() { <-c.m.login }()
	state, err := s.p.GetSessionInfo(s.h)
	if err != nil {
		return s.fail("C_GetSessionInfo", err)
	}
	if state.State == pkcs11.CKS_RO_USER_FUNCTIONS || state.State == pkcs11.CKS_RW_USER_FUNCTIONS {
		return nil
	}
	// Fresh flags: a wrong PIN by anybody else since the token was found counts too.
	info, err := s.p.GetTokenInfo(c.slot)
	if err != nil {
		return s.fail("C_GetTokenInfo", err)
	}
	if err := checkPINFlags(c.t.label, info.Flags); err != nil {
		return err
	}
	if info.Flags&pkcs11.CKF_USER_PIN_COUNT_LOW != 0 {
		c.t.log.WarnContext(ctx, "a wrong PIN was given to the token since the last login", "source", c.t.cfg.PIN.String())
	}
	pin, err := c.t.cfg.PIN.Read()
	if err != nil {
		return err
	}
	defer clear(pin)
	if err := pins.allow(pin, info.Flags, c.t.cfg.PIN); err != nil {
		return err
	}
	err = callError("C_Login", s.login(pin))
	if err == nil || isCode(err, pkcs11.CKR_USER_ALREADY_LOGGED_IN) {
		pins.accepted()
		return nil
	}
	after, ierr := s.p.GetTokenInfo(c.slot)
	if ierr != nil {
		after.Flags = info.Flags
	}
	if pinRefused(err, info.Flags, after.Flags) {
		pins.reject(pin, after.Flags)
		return pins.refusal(c.t.cfg.PIN, err)
	}
	return err
}

// pinRefused tells whether the error of C_Login, and the token's flags before and after it, mean or may mean that the token took the PIN for
// wrong. A code that is the vendor's own or does not belong to C_Login counts as that: being wrong about it costs a restart, the other way
// round the supervisor would use up the tries until the token locks.
func pinRefused(err error, before, after uint) bool {
	const tries = pkcs11.CKF_USER_PIN_COUNT_LOW | pkcs11.CKF_USER_PIN_FINAL_TRY | pkcs11.CKF_USER_PIN_LOCKED
	if after&^before&tries != 0 {
		return true
	}
	switch classify(err) {
	case classPIN:
		return true
	case classNone:
		// PKCS#11 v2.40, 5.6: these say that the PIN was not looked at.
		return !isCode(err, pkcs11.CKR_USER_ANOTHER_ALREADY_LOGGED_IN, pkcs11.CKR_USER_TOO_MANY_TYPES, pkcs11.CKR_USER_TYPE_INVALID,
			pkcs11.CKR_SESSION_READ_ONLY_EXISTS, pkcs11.CKR_FUNCTION_NOT_SUPPORTED)
	}
	return false
}

// checkPINFlags says when no login may be tried, and what to do.
func checkPINFlags(label string, flags uint) error {
	switch {
	case flags&pkcs11.CKF_USER_PIN_INITIALIZED == 0:
		return fmt.Errorf("token %q has no user PIN yet: initialise it", label)
	case flags&pkcs11.CKF_USER_PIN_LOCKED != 0:
		return fmt.Errorf("the PIN of token %q is locked after too many wrong tries: the security officer must set a new one", label)
	case flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0:
		return fmt.Errorf("token %q allows one more try of its PIN before it locks; Keyhold does not use it up: log in once with the right PIN by hand (pkcs11-tool --login), which resets the count", label)
	case flags&pkcs11.CKF_USER_PIN_TO_BE_CHANGED != 0:
		return fmt.Errorf("the PIN of token %q must be changed before it is used: change it with the vendor's tool", label)
	}
	return nil
}

var errPINRejected = errors.New("PIN rejected")
