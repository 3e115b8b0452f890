package doctor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/keyhold/keyhold/hsm"
)

// patient is one token under examination.
type patient struct {
	name       string
	cfg        hsm.Config
	configured bool // it belongs to an installation, and must have a canary

	module *moduleFound
	slot   hsm.SlotInfo
	token  *hsm.Token // nil where it could not be opened
	// objects are all token objects, of any class; nil where they could not be
	// listed.
	objects []hsm.Object
	custody []hsm.ObjectCustody
}

func (p *patient) close(ctx context.Context) {
	if p.token != nil {
		_ = p.token.Close(ctx) // what hangs ends with the process
	}
}

// moduleFound is a PKCS#11 library that was looked at.
type moduleFound struct {
	info hsm.ModuleInfo
	err  error
}

// softhsmLibrary is what SoftHSM says in CK_INFO.manufacturerID.
const softhsmLibrary = "SoftHSM"

func (m *moduleFound) software() bool { return m.info.Manufacturer == softhsmLibrary }

// token does all checks of one token. What needs a login comes last, and only
// if nothing before it speaks against one.
func (e *exam) token(ctx context.Context, p *patient) {
	e.patients = append(e.patients, p)
	needLogin := []string{"login", "canary", "capabilities", "custody", "witness"}
	skip := func(because string, names ...string) {
		for _, name := range append(names, needLogin...) {
			e.skip(name, p.name, because)
		}
	}
	if !e.module(ctx, p) {
		skip("the module cannot be used", "token", "pin-flags", "pin-source")
		return
	}
	if !e.find(p) {
		skip("the token was not found", "pin-flags", "pin-source")
		return
	}
	flags, source := e.pinFlags(p), e.pinSource(p)
	switch {
	case !flags:
		skip("no login is tried with these PIN flags")
		return
	case !source:
		skip("there is no PIN to log in with")
		return
	}
	if !e.login(ctx, p) {
		needLogin = needLogin[1:]
		skip("the login failed")
		return
	}
	e.canary(ctx, p)
	e.capabilities(p)
	e.objects(ctx, p)
	e.witness(ctx, p)
}

// module loads the library, once for all of its tokens.
func (e *exam) module(ctx context.Context, p *patient) bool {
	path := p.cfg.Module
	m, known := e.modules[path]
	if !known {
		m = &moduleFound{}
		e.modules[path] = m
		ctx, cancel := context.WithTimeout(ctx, e.opts.Timeout)
		m.info, m.err = hsm.InspectModule(ctx, path)
		cancel()
		e.reportModule(path, m)
	}
	p.module = m
	return m.err == nil
}

func (e *exam) reportModule(path string, m *moduleFound) {
	if m.err != nil {
		e.fail("module", path, cause(m.err), moduleRemedy(m.err))
		// It cannot say what it is. SoftHSM does not load without its configuration.
		if strings.Contains(strings.ToLower(filepath.Base(path)), "softhsm") {
			e.softhsm()
		}
		return
	}
	c := Check{Name: "module", Subject: path, Status: OK, Fact: fmt.Sprintf("%s, library version %s, PKCS#11 %s, %s",
		describe(m.info.Manufacturer, m.info.Library), m.info.LibraryVersion, m.info.CryptokiVersion, count(len(m.info.Slots), "slot"))}
	for _, s := range m.info.Slots {
		switch {
		case s.Err != "":
			c.Details = append(c.Details, fmt.Sprintf("slot %d: %s", s.Slot, s.Err))
		case s.Initialized:
			c.Details = append(c.Details, fmt.Sprintf("slot %d: token %q, serial number %s, %s, firmware %s", s.Slot, s.Label, s.Serial, describe(s.Manufacturer, s.Model), s.Firmware))
		default:
			c.Details = append(c.Details, fmt.Sprintf("slot %d: not initialised", s.Slot))
		}
	}
	if mode, ok := writableByOthers(path); ok {
		c.Status, c.Fact = Fail, fmt.Sprintf("%s; but its mode is %04o: others may replace what runs in the daemon", c.Fact, mode)
		c.Remedy = "chmod go-w " + path
	}
	e.add(c)
	if m.software() {
		e.warn("software-token", path, "SoftHSM is software: it protects nothing against root on this host", "use a hardware token where that matters; see docs/threat-model.md")
		e.softhsm()
	}
}

func moduleRemedy(err error) string {
	var call *hsm.Error
	if errors.Is(err, context.DeadlineExceeded) {
		return libraryHangs
	}
	if errors.As(err, &call) {
		return "look at the library's own configuration and logs; SoftHSM answers so when its configuration cannot be read"
	}
	return "install the token's PKCS#11 library, or correct the path; SoftHSM: softhsm-config/install.sh"
}

// writableByOthers follows links: what counts is the file that is loaded.
func writableByOthers(path string) (os.FileMode, bool) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, false
	}
	return info.Mode().Perm(), info.Mode().Perm()&0o022 != 0
}

func describe(names ...string) string {
	var known []string
	for _, n := range names {
		if n != "" {
			known = append(known, n)
		}
	}
	if len(known) == 0 {
		return "unnamed"
	}
	return strings.Join(known, ", ")
}

// find finds the token by label and serial number.
func (e *exam) find(p *patient) bool {
	var matches []hsm.SlotInfo
	for _, s := range p.module.info.Slots {
		if s.Initialized && (p.cfg.TokenLabel == "" || p.cfg.TokenLabel == s.Label) && (p.cfg.TokenSerial == "" || p.cfg.TokenSerial == s.Serial) {
			matches = append(matches, s)
		}
	}
	wanted := wantedName(p.cfg)
	switch len(matches) {
	case 0:
		remedy := "correct the label or serial number, or initialise the token with its vendor's tool"
		if p.module.software() {
			remedy += "; SoftHSM looks where SOFTHSM2_CONF says (see the check softhsm)"
		}
		e.fail("token", p.name, "no token with "+wanted+" in "+p.cfg.Module, remedy)
		return false
	case 1:
	default:
		c := Check{Name: "token", Subject: p.name, Status: Fail, Fact: fmt.Sprintf("%d tokens with %s in %s", len(matches), wanted, p.cfg.Module), Remedy: "name the token by its serial number"}
		for _, s := range matches {
			c.Details = append(c.Details, fmt.Sprintf("token %q, serial number %s", s.Label, s.Serial))
		}
		e.add(c)
		return false
	}
	s := matches[0]
	p.slot = s
	fact := fmt.Sprintf("%q, serial number %s, %s, firmware %s, sessions %s", s.Label, s.Serial, describe(s.Manufacturer, s.Model), s.Firmware, sessionLimit(s.MaxSessions))
	if s.WriteProtected {
		e.fail("token", p.name, fact+"; it is write-protected, so that no key can be made or destroyed", "take the write protection off with the vendor's tool")
		return true
	}
	e.ok("token", p.name, fact)
	return true
}

func wantedName(cfg hsm.Config) string {
	switch {
	case cfg.TokenSerial == "":
		return fmt.Sprintf("label %q", cfg.TokenLabel)
	case cfg.TokenLabel == "":
		return "serial number " + cfg.TokenSerial
	}
	return fmt.Sprintf("label %q and serial number %s", cfg.TokenLabel, cfg.TokenSerial)
}

func sessionLimit(n int) string {
	if n == 0 {
		return "unlimited"
	}
	return fmt.Sprintf("at most %d", n)
}

// pinFlags looks at the flags before any login, and tells whether one may be
// tried. A wrong try may be the last one.
func (e *exam) pinFlags(p *patient) bool {
	f := p.slot.PIN
	switch {
	case !p.slot.LoginRequired:
		e.ok("pin-flags", p.name, "the token wants no login")
	case !f.Initialized:
		e.fail("pin-flags", p.name, "the token has no user PIN yet", "set one with the vendor's tool (pkcs11-tool --init-pin)")
		return false
	case f.Locked:
		e.fail("pin-flags", p.name, "the PIN is locked after too many wrong tries", "let the security officer set a new PIN, and put it into "+p.cfg.PIN.String())
		return false
	case f.FinalTry:
		e.fail("pin-flags", p.name, "one more wrong try locks the PIN; it is not used up here", "log in once by hand with the right PIN (pkcs11-tool --login), which resets the count, and make sure that "+p.cfg.PIN.String()+" holds it")
		return false
	case f.ToBeChanged:
		e.fail("pin-flags", p.name, "the PIN must be changed before it is used", "change it with the vendor's tool, and put the new one into "+p.cfg.PIN.String())
		return false
	case f.CountLow:
		e.warn("pin-flags", p.name, "a wrong PIN was given since the last login", "find out by whom; a right login resets this")
	default:
		e.ok("pin-flags", p.name, "PIN initialised, not locked, no wrong try since the last login")
	}
	return true
}

// pinSource reads the PIN and forgets it again.
func (e *exam) pinSource(p *patient) bool {
	source := p.cfg.PIN.String()
	pin, err := p.cfg.PIN.Read()
	clear(pin)
	if err != nil {
		e.fail("pin-source", p.name, cause(err), "put the PIN, and nothing else, into "+source+", readable by the daemon's user only (0600)")
		return false
	}
	if name, ok := strings.CutPrefix(source, "env:"); ok {
		e.warn("pin-source", p.name, source+" holds a PIN; the environment is inherited by child processes and can be read through /proc by the same user", "prefer a file or a systemd credential; unset "+name)
		return true
	}
	fact := source + " holds a PIN"
	if path, ok := strings.CutPrefix(source, "file:"); ok {
		if info, err := os.Stat(path); err == nil {
			fact += fmt.Sprintf(", mode %04o", info.Mode().Perm())
		}
	}
	e.ok("pin-source", p.name, fact)
	return true
}

// login opens the token: one login, the names of all objects, the probes.
func (e *exam) login(ctx context.Context, p *patient) bool {
	ctx, cancel := context.WithTimeout(ctx, e.opts.Timeout)
	defer cancel()
	var err error
	// No cache of probes: what is shown here was tried now.
	p.token, err = hsm.OpenOnce(ctx, p.cfg, hsm.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		e.fail("login", p.name, cause(err), loginRemedy(p, err))
		return false
	}
	e.ok("login", p.name, "accepted, at the first and only try")
	return true
}

const libraryHangs = "the library hangs, or is slow: look at the token's own logs and its connection; --timeout gives it more time"

func loginRemedy(p *patient, err error) string {
	var call *hsm.Error
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return libraryHangs
	case errors.As(err, &call) && call.Call == "C_Login" && strings.HasPrefix(hsm.CodeName(call.RV), "CKR_PIN"):
		return "put the right PIN into " + p.cfg.PIN.String() + " before anything else tries; run doctor again then"
	case strings.Contains(err.Error(), "must be synced"):
		return "let SOFTHSM2_CONF name the configuration of this token, in the token's environment"
	}
	return "look at the token's own logs; the check pin-flags tells whether more tries are safe"
}

// canary seals and opens with the token's canary key.
func (e *exam) canary(ctx context.Context, p *patient) {
	err := p.token.Ready()
	if err == nil {
		err = p.token.Canary(ctx)
	} else if cerr := p.token.Canary(ctx); cerr != nil {
		err = cerr
	}
	switch {
	case err == nil:
		e.ok("canary", p.name, "the canary key sealed and opened in the token")
	case !errors.Is(err, hsm.ErrKeyNotFound):
		e.fail("canary", p.name, cause(err), "the token logs in but does not work: look at its own logs")
	case p.configured:
		e.fail("canary", p.name, "there is no canary key, so that the daemon will not be ready", "run `keyholdd init --config "+e.opts.ConfigFile+"`")
	default:
		e.warn("canary", p.name, "there is no canary key", "`keyholdd init` makes it when the token is in a configuration")
	}
}

// capabilities summarises what the token has proven; the report has it all.
func (e *exam) capabilities(p *patient) {
	caps := p.token.Capabilities()
	st := p.token.Status()
	e.report.Tokens = append(e.report.Tokens, TokenReport{
		Name: p.name, Module: p.cfg.Module, Library: describe(p.module.info.Manufacturer, p.module.info.Library, p.module.info.LibraryVersion),
		Label: st.Label, Serial: st.Serial, Manufacturer: st.Manufacturer, Model: st.Model, Firmware: st.Firmware,
		Software: p.module.software(), Capabilities: caps, Objects: []ObjectReport{},
	})
	var missing []string
	total := 0
	for _, spec := range hsm.KeySpecs() {
		for _, purpose := range spec.Purposes() {
			total++
			if err := caps.CanGenerate(spec, purpose); err != nil {
				missing = append(missing, fmt.Sprintf("%s to %s: %s", spec, purpose, cause(err)))
			}
		}
	}
	c := Check{Name: "capabilities", Subject: p.name, Status: OK, Fact: fmt.Sprintf("all %d kinds of keys proven by known answers", total), Details: missing}
	if len(missing) > 0 {
		c.Status, c.Fact = Warn, fmt.Sprintf("%d of %d kinds of keys proven; the others are refused when somebody wants to make one", total-len(missing), total)
		c.Remedy = "use another token, or a newer library, for what is missing"
	}
	if err := caps.CanGenerate(hsm.AES256, hsm.PurposeSeal); err != nil {
		c.Status, c.Fact = Fail, "AES-256-GCM is not proven, without which there is no canary and nothing can be sealed: "+cause(err)
	}
	e.add(c)
}
