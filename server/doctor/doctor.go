// Package doctor looks at an installation, or at one token alone, and says
// what works, what does not and why, and what to do about it.
//
// It promises to be safe beside a running daemon and on a production token:
//
//   - It changes no record, no audit record and none of the keys in a token.
//     The database is opened read-only, the journal is read, and what is tried
//     on the token are session objects of its own login. Only the witness, which
//     can be left out, makes token objects, named "keyhold-witness", and destroys
//     them again.
//   - A token sees one login at most, none where its flags warn of a locked
//     PIN or of the last try, and a PIN that was rejected is not tried again.
//     The witness is a process of its own and logs in once more, after the first
//     login was accepted.
//   - PINs are read, zeroed, and never shown.
//
// It reports what it sees at one moment. It cannot see whether a token keeps
// the promises that it makes in its attributes, and it looks at the journal's
// chain, not at signatures or at anchors that were kept elsewhere. It mends
// nothing: each problem comes with a remedy for the operator.
package doctor

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/keyhold/keyhold/hsm"
	"github.com/keyhold/keyhold/hsm/witness"
	"github.com/keyhold/keyhold/server"
	"github.com/keyhold/keyhold/server/store/sqlite"
)

// Options say what to look at.
type Options struct {
	// ConfigFile is the installation's configuration. Empty: only Token is
	// looked at.
	ConfigFile string
	// Token is the token to look at where there is no configuration.
	Token hsm.Config
	// Version is the program's, for the report.
	Version string
	// Witness says how to start the witness, which see; module and PIN are
	// filled in for each token. Without Exe there is no witness.
	Witness witness.Child
	// Timeout bounds each step at a token whose library may hang: looking at
	// the library, connecting, listing objects, the witness. Optional:
	// DefaultTimeout.
	Timeout time.Duration
	// Now is the clock. Optional: time.Now.
	Now func() time.Time
}

// DefaultTimeout is Options.Timeout's. Connecting to a slow token with many
// objects takes its time: their names are read, and all probes are made.
const DefaultTimeout = 2 * time.Minute

// closeTimeout bounds the closing of tokens.
const closeTimeout = 5 * time.Second

// Run does all checks, in an order in which each finds its reason for being
// skipped in one before it. It sets the environment that the configuration
// wants for its tokens. It returns early, with what it has, when ctx ends.
func Run(ctx context.Context, opts Options) *Report {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Timeout <= 0 {
		opts.Timeout = DefaultTimeout
	}
	e := &exam{opts: opts, report: &Report{Version: opts.Version, Time: opts.Now().UTC(), Tokens: []TokenReport{}}, modules: make(map[string]*moduleFound)}
	defer e.close(ctx)
	if opts.ConfigFile == "" {
		e.user("")
		e.coreDumps()
		e.token(ctx, &patient{name: opts.Token.TokenLabel + opts.Token.TokenSerial, cfg: opts.Token})
		return e.report
	}
	if !e.configuration() {
		e.skip("everything else", "", "the configuration cannot be used")
		return e.report
	}
	e.settings()
	e.user(e.cfg.DataDir)
	e.coreDumps()
	e.fileModes()
	e.environment()
	e.store(ctx)
	for _, t := range e.cfg.Tokens {
		cfg, err := t.HSM()
		if err != nil { // LoadConfig has checked it
			e.fail("token", t.Name, err.Error(), "correct the token's configuration")
			continue
		}
		e.token(ctx, &patient{name: t.Name, cfg: cfg, configured: true})
	}
	e.reconcile(ctx)
	e.accessKeys(ctx)
	live := e.journal(ctx)
	e.diskSpace()
	e.certificates()
	e.clock(ctx, live)
	e.timeSync()
	return e.report
}

// exam is one run.
type exam struct {
	opts     Options
	report   *Report
	cfg      *server.Config
	modules  map[string]*moduleFound // by path
	patients []*patient
	reader   *sqlite.Reader // nil where the store could not be opened
	records  recordsBefore
}

func (e *exam) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	for _, p := range e.patients {
		p.close(ctx)
	}
	if e.reader != nil {
		_ = e.reader.Close() // nothing was written
	}
}

// configuration reads the configuration file.
func (e *exam) configuration() bool {
	cfg, err := server.LoadConfig(e.opts.ConfigFile)
	if err != nil {
		e.fail("configuration", e.opts.ConfigFile, err.Error(), "correct the file; `keyholdd serve --config "+e.opts.ConfigFile+" --check` says whether it is valid")
		return false
	}
	e.cfg = cfg
	e.ok("configuration", e.opts.ConfigFile, fmt.Sprintf("valid: %s, %s, %s",
		count(len(cfg.Regions), "region"), count(len(cfg.Tokens), "token"), count(len(cfg.Principals), "principal")))
	return true
}

// settings warns of settings that are allowed and weaken something.
func (e *exam) settings() {
	before := len(e.report.Checks)
	if e.cfg.Admin.AllowRemote {
		e.warn("settings", "admin.allow_remote", "the admin listener "+e.cfg.Admin.Listen+" may be reached from other machines and has no authentication", "let a firewall or a proxy decide who reaches it")
	}
	if e.cfg.Audit.Durability == "written" {
		e.warn("settings", "audit.durability", "data-plane records of the last second are lost when the power fails", "use synced where every use must stay provable")
	}
	if e.cfg.TrustClock {
		e.warn("settings", "trust_clock", "a clock that jumps can end waiting periods and destroy keys", "leave it out in production")
	}
	if len(e.report.Checks) == before {
		e.ok("settings", "", "none that weakens anything")
	}
}

// environment sets what the configuration wants for tokens, as serve does.
func (e *exam) environment() {
	for _, t := range e.cfg.Tokens {
		for _, name := range slices.Sorted(maps.Keys(t.Environment)) {
			value := t.Environment[name]
			if old, set := os.LookupEnv(name); set && old != value {
				e.warn("environment", name, fmt.Sprintf("is %q around this process, and %q for the token %s, which holds", old, value, t.Name), "unset the variable, or make both the same, so that other programs see the same tokens")
			}
			if err := os.Setenv(name, value); err != nil {
				e.fail("environment", name, err.Error(), "correct the name and value in the token's environment")
			}
		}
	}
}

// count writes a number and its noun.
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// cause writes an error without the prefixes that say where it was noticed.
func cause(err error) string {
	s := err.Error()
	for {
		short := s
		for _, prefix := range []string{"hsm: token unavailable: ", "hsm: ", "open store read-only: ", "check store: ", "verify audit journal: ", "audit journal: "} {
			short = strings.TrimPrefix(short, prefix)
		}
		if short == s {
			return s
		}
		s = short
	}
}

// hint splits an error of the form "what; hint: remedy" into its parts.
func hint(err error, otherwise string) (fact, remedy string) {
	fact, remedy, ok := strings.Cut(cause(err), "; hint: ")
	if !ok {
		remedy = otherwise
	}
	return fact, remedy
}
