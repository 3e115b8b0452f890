package hsm

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"
)

// lane is a queue of jobs and the workers that serve it.
type lane uint8

const (
	laneCrypto  lane = iota // many workers with RO sessions: cryptography
	laneObjects             // one worker with the RW session: it is the lock around token objects
	laneKeeper              // one worker with the anchor session: it owns the session copies, and the login hangs on it
	laneCanary              // one worker: health must be seen while all others are busy
	laneCount
)

// ownSessions is how many sessions a connection needs beside those for cryptography.
const ownSessions = int(laneCount) - 1

// regrowAfter is how long a pool that met the token's session limit waits before it tries one more session.
const regrowAfter = 30 * time.Second

// conn is one logged-in connection to a token: its sessions, handles and copies. It is never mended, but replaced: everything in it is of one
// generation. It stops taking jobs when stop is closed; workers that hang stay behind until the library lets them go.
type conn struct {
	t     *Token
	m     *module
	p     *pkcs11.Ctx
	epoch uint64 // of the module
	slot  uint
	info  pkcs11.TokenInfo
	lanes [laneCount]chan *job
	hangs [laneCount]atomic.Pointer[chan struct{}] // closed while the lane's only worker hangs; not of laneCrypto
	stop  chan struct{}
	last  chan struct{} // closed when no worker but the keeper is left, after stop
	gone  chan struct{} // closed when the last worker has ended
	open  atomic.Int64  // sessions

	index      *index
	copies     *copies
	durable    *durable
	canary     atomic.Uint64 // handle of the canary key; 0 is no handle (CK_INVALID_HANDLE)
	canarySeen atomic.Bool   // the canary was found on this connection or an earlier one: its absence means trouble from then on
	logout     atomic.Bool   // the keeper logs out when it ends

	mu       sync.Mutex
	stopped  bool
	lastTold bool // last is closed
	live     int  // workers, hanging ones included
	keepers  int  // those of them that are keepers: 0 or 1
	crypto   int  // workers of laneCrypto that take jobs
	target   int  // how many of them there should be
	cutAt    time.Time
}

// newConn makes a connection without workers.
func newConn(t *Token, epoch uint64, slot uint, info pkcs11.TokenInfo) *conn {
	c := &conn{t: t, m: t.mod, p: t.mod.p, epoch: epoch, slot: slot, info: info, stop: make(chan struct{}), last: make(chan struct{}), gone: make(chan struct{})}
	for ln := range c.lanes {
		c.lanes[ln] = make(chan *job)
		hang := make(chan struct{})
		c.hangs[ln].Store(&hang)
	}
	c.index = newIndex()
	c.copies = newCopies(t.cfg.MaxCopies)
	return c
}

// start starts a worker, which opens its session when it gets its first job, or owns s from the beginning.
func (c *conn) start(ln lane, s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return
	}
	c.live++
	switch ln {
	case laneCrypto:
		c.crypto++
	case laneKeeper:
		c.keepers++
	}
	w := &worker{c: c, ln: ln, s: s}
	go w.run()
}

// workerGone counts a worker that ended.
func (c *conn) workerGone(w *worker) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.live--
	if w.ln == laneKeeper {
		c.keepers--
	}
	c.countDown()
}

// countDown tells who waits for the workers' end. The caller holds mu.
func (c *conn) countDown() {
	if !c.stopped {
		return
	}
	if c.live == c.keepers && !c.lastTold {
		c.lastTold = true
		close(c.last)
	}
	if c.live == 0 {
		close(c.gone)
	}
}

// shut stops all workers that do not hang. It does not wait.
func (c *conn) shut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return
	}
	c.stopped = true
	close(c.stop)
	c.countDown()
}

// stick counts a call that hangs, and starts a replacement for its worker as long as the bound allows; at the bound the token refuses calls.
func (c *conn) stick(w *worker, call string) {
	if w.ln != laneCrypto {
		close(*c.hangs[w.ln].Load()) // who waits for the worker has no other to wait for
	}
	n := c.t.stuck.Add(1)
	c.t.obs.Stuck(c.t.label, 1)
	c.t.log.Error("a call hangs in the PKCS#11 module", "call", call, "module", c.m.path, "hanging", n)
	if w.ln != laneCrypto {
		c.t.nudge()
		return
	}
	c.mu.Lock()
	c.crypto--
	c.mu.Unlock()
	if int(n) < c.t.cfg.MaxStuck {
		c.start(laneCrypto, nil)
		return
	}
	c.t.trip(c)
}

// unstick counts a call that came back, and tells whether its worker is still needed.
func (c *conn) unstick(w *worker) bool {
	if w.ln != laneCrypto {
		hang := make(chan struct{})
		c.hangs[w.ln].Store(&hang)
	}
	n := c.t.stuck.Add(-1)
	c.t.obs.Stuck(c.t.label, -1)
	c.t.log.Warn("a call that hung has returned", "module", c.m.path, "hanging", n)
	defer c.t.nudge()
	if w.ln != laneCrypto {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.crypto >= c.target {
		return false
	}
	c.crypto++
	return true
}

// tooMany is called when the token has no session for a worker. The worker ends, and its job goes to the others; the last one stays and
// reports why.
func (c *conn) tooMany(err error) (full bool, _ error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.crypto <= 1 {
		return false, errors.Join(unavailable("token %q has no free session: other programs hold them, or its limit is below what is configured", c.t.label), err)
	}
	c.crypto--
	c.target = c.crypto
	c.cutAt = time.Now()
	c.t.log.Warn("the token has no more sessions: the pool shrinks", "sessions", c.target)
	return true, errMoved
}

// regrow tries one session more, some time after the token refused one.
func (c *conn) regrow() {
	c.mu.Lock()
	grow := c.target < c.wanted() && time.Since(c.cutAt) > regrowAfter
	if grow {
		c.target++
		c.cutAt = time.Now()
	}
	c.mu.Unlock()
	if grow {
		c.start(laneCrypto, nil)
	}
}

// wanted is how many sessions for cryptography the configuration and the token's limits allow.
func (c *conn) wanted() int {
	return min(c.t.cfg.MaxSessions, sessionLimit(c.info)-ownSessions)
}

// sessionLimit returns how many sessions the token allows. Zero means no limit (CK_EFFECTIVELY_INFINITE), all ones that the library does
// not tell (CK_UNAVAILABLE_INFORMATION). One RW session is all that is needed, so its own limit does not matter. PKCS#11 v2.40, 3.2.
func sessionLimit(info pkcs11.TokenInfo) int {
	n := info.MaxSessionCount
	if n == 0 || n >= unlimited {
		return unlimited
	}
	return int(n)
}

// unlimited is more sessions than anybody opens.
const unlimited = 1 << 20

// checkLimits says when the token allows too few sessions to work with.
func (c *conn) checkLimits() error {
	if n := sessionLimit(c.info); n <= ownSessions {
		return fmt.Errorf("token %q allows %d sessions at once, at least %d are needed", c.t.label, n, ownSessions+1)
	}
	return nil
}
