package hsm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/miekg/pkcs11"
)

// module is one PKCS#11 library in this process, shared by all tokens that live in it. PKCS#11 allows one C_Initialize per process and
// library, and C_Finalize ends every session, login and handle of all its tokens; both are undefined while another thread is inside the
// library (PKCS#11 v2.40, 5.4). So every call passes the module's gate, and the library is finalized only when nobody is inside.
type module struct {
	path string

	// op serialises C_Initialize and C_Finalize, and login the logins of all tokens of the module. They are channels so that waiting obeys a context.
	op, login chan struct{}

	mu          sync.Mutex
	direct      *direct
	p           *pkcs11.Ctx // nil until the library is loaded; never unloaded, since libraries leave exit handlers and thread data behind
	initialised bool
	foreign     bool          // somebody else in this process initialised the library: it is not ours to finalize
	epoch       uint64        // counts initialisations; a session of an older epoch is dead
	inside      int           // how many calls are in the library, hanging ones included
	gateAt      time.Time     // when the gate was closed
	gate        chan struct{} // not nil while the gate is closed; closed when it opens
	left        chan struct{} // not nil while somebody waits for inside to become 0
	tokens      map[*Token]bool
	users       int // tokens, and short visits by InitToken and InspectModule
	softhsmConf string
}

// modules holds the libraries of this process. It mirrors the state that the dynamic linker and the libraries keep per process, and has to be
// as global as that: two owners of one library would finalize it under each other.
var modules = struct {
	sync.Mutex
	byPath map[string]*module
}{byPath: map[string]*module{}}

// acquireModule returns the module at path and counts the caller as a user of it. It loads nothing.
func acquireModule(path string) *module {
	// The linker knows a library by its file, not by its name.
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	modules.Lock()
	defer modules.Unlock()
	m := modules.byPath[path]
	if m == nil {
		m = &module{path: path, op: make(chan struct{}, 1), login: make(chan struct{}, 1), tokens: map[*Token]bool{}}
		modules.byPath[path] = m
	}
	m.mu.Lock()
	m.users++
	m.mu.Unlock()
	return m
}

// lock takes a channel used as a mutex, unless ctx ends first.
func lock(ctx context.Context, ch chan struct{}) error {
	select {
	case ch <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// errMoved means that a job did not run because its connection was replaced first: it is safe to hand it in again.
var errMoved = errors.New("hsm: the connection to the token was replaced")

// enter passes the gate, waiting while it is closed, and tells whether the epoch is still the caller's. If so the caller must leave.
func (m *module) enter(epoch uint64, stop <-chan struct{}) bool {
	for {
		m.mu.Lock()
		if m.gate == nil {
			ok := m.initialised && m.epoch == epoch
			if ok {
				m.inside++
			}
			m.mu.Unlock()
			return ok
		}
		gate := m.gate
		m.mu.Unlock()
		select {
		case <-gate:
		case <-stop:
			return false
		}
	}
}

// enterNow is enter for calls that need not be made: it does not wait for the gate.
func (m *module) enterNow(epoch uint64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.gate != nil || !m.initialised || m.epoch != epoch {
		return false
	}
	m.inside++
	return true
}

// leave ends what enter began.
func (m *module) leave() {
	m.mu.Lock()
	m.inside--
	if m.inside == 0 && m.left != nil {
		close(m.left)
		m.left = nil
	}
	m.mu.Unlock()
}

// visit makes sure that the library is loaded and initialised and enters it. It returns the epoch; the caller must leave.
func (m *module) visit(ctx context.Context) (uint64, error) {
	if err := lock(ctx, m.op); err != nil {
		return 0, err
	}
	defer func() { <-m.op }()
	if err := m.initialise(); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inside++
	return m.epoch, nil
}

// initialise loads and initialises the library where that has not been done. The caller holds op. It may hang with the library.
func (m *module) initialise() error {
	m.mu.Lock()
	p, d, done := m.p, m.direct, m.initialised
	m.mu.Unlock()
	if done {
		return nil
	}
	if p == nil {
		if _, err := os.Stat(m.path); err != nil {
			return fmt.Errorf("PKCS#11 module: %w; install it, or mend the path", err)
		}
		if p = pkcs11.New(m.path); p == nil {
			return fmt.Errorf("PKCS#11 module %s could not be loaded: it is no PKCS#11 library for this machine, or a library that it needs is missing (see ldd %s)", m.path, m.path)
		}
	}
	// SoftHSM reads its configuration's name now and never again.
	conf := softhsmConfPath()
	if d == nil {
		var err error
		if d, err = newDirect(m.path); err != nil {
			return err
		}
	}
	err := callError("C_Initialize", p.Initialize())
	foreign := isCode(err, pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.p == nil { // written once: calls read them without the lock, and a foreign library is initialised again while they run
		m.p, m.direct = p, d
	}
	if err != nil && !foreign {
		return fmt.Errorf("initialise PKCS#11 module %s: %w", m.path, err)
	}
	m.initialised, m.foreign = true, foreign
	m.epoch++
	m.softhsmConf = conf
	return nil
}

// finalise calls C_Finalize if nobody is inside. The caller holds op. It may hang with the library.
func (m *module) finalise() error {
	m.mu.Lock()
	if !m.initialised || m.foreign {
		m.mu.Unlock()
		return nil
	}
	if m.inside > 0 {
		n := m.inside
		m.mu.Unlock()
		return unavailable("%d calls have not returned from PKCS#11 module %s, so it cannot be finalized", n, m.path)
	}
	m.initialised = false
	p := m.p
	m.mu.Unlock()
	err := callError("C_Finalize", p.Finalize())
	if err == nil || isCode(err, pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED) {
		return nil
	}
	m.mu.Lock()
	m.initialised = true // it still is, as far as one can know
	m.mu.Unlock()
	return err
}

// reinitialise finalizes the library and initialises it again, unless that has been done since the given epoch. It closes the gate, waits
// for the calls inside to leave until ctx ends, and gives up when they do not: a hanging call forbids C_Finalize. All other tokens of the
// module are paused meanwhile, and connect again afterwards.
//
// Once C_Finalize has begun it goes on to the end whatever ctx says, so it must run in a goroutine of its own.
func (m *module) reinitialise(ctx context.Context, epoch uint64, by *Token) error {
	if err := lock(ctx, m.op); err != nil {
		return err
	}
	defer func() { <-m.op }()
	m.mu.Lock()
	if m.epoch != epoch || m.p == nil {
		m.mu.Unlock()
		return m.initialise()
	}
	if m.foreign {
		m.initialised = false // it may have been finalized by whom it belongs to: it is ours then
		m.mu.Unlock()
		if err := m.initialise(); err != nil || !m.isForeign() {
			return err
		}
		return fmt.Errorf("PKCS#11 module %s was initialised by another part of this process, so it cannot be initialised again to heal it", m.path)
	}
	gate := make(chan struct{})
	m.gate, m.gateAt = gate, time.Now()
	var left chan struct{}
	if m.inside > 0 {
		left = make(chan struct{})
		m.left = left
	}
	var others []*Token
	for t := range m.tokens {
		if t != by {
			others = append(others, t)
		}
	}
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		m.gate, m.left = nil, nil
		m.mu.Unlock()
		close(gate)
		for _, t := range others {
			t.nudge()
		}
	}()
	if left != nil {
		select {
		case <-left:
		case <-ctx.Done():
			return unavailable("calls have not returned from PKCS#11 module %s, so it cannot be initialised again; restart the process if they never do", m.path)
		}
	}
	for _, t := range others {
		t.pause(epoch)
	}
	if err := m.finalise(); err != nil {
		return fmt.Errorf("finalize PKCS#11 module %s: %w", m.path, err)
	}
	return m.initialise()
}

// release ends the use that acquireModule began, and finalizes the library after the last user. It hangs when the library hangs, and refuses to
// finalize while a call is inside.
func (m *module) release() error {
	m.op <- struct{}{}
	defer func() { <-m.op }()
	m.mu.Lock()
	m.users--
	last := m.users == 0
	m.mu.Unlock()
	if !last {
		return nil
	}
	// Who acquires the module from now on waits for op and initialises it again.
	return m.finalise()
}

// alone tells whether no other token of this process uses the slot, so that its login may be ended.
func (m *module) alone(t *Token, slot uint) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for o := range m.tokens {
		o.mu.Lock()
		c := o.details.conn
		o.mu.Unlock()
		if o != t && c != nil && c.slot == slot {
			return false
		}
	}
	return true
}

// now returns the epoch of the library, and whether it is initialised.
func (m *module) now() (epoch uint64, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.epoch, m.initialised
}

// neighbours tells whether another token of the module is serving.
func (m *module) neighbours(t *Token) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for o := range m.tokens {
		if o != t && o.state.Load().phase == phaseServing {
			return true
		}
	}
	return false
}

// hanging returns how many calls hang in the library, over all tokens.
func (m *module) hanging() (n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for t := range m.tokens {
		n += t.stuck.Load()
	}
	return n
}

func (m *module) isForeign() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.foreign
}

// pausedFor returns for how long the gate has been closed, 0 when it is open.
func (m *module) pausedFor() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.gate == nil {
		return 0
	}
	return time.Since(m.gateAt)
}
