package hsm

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"
)

// A job's life. Whoever moves it out of running first, the worker that finished it or the caller that gave up, decides who ends the request.
const (
	jobHanded int32 = iota
	jobRunning
	jobFinished
	jobAbandoned
)

// job is one request on its way through a worker.
type job struct {
	request
	queued, began time.Time
	held          time.Duration // written before done is sent to
	w             *worker       // written before the job is running
	entered       time.Time     // written before inside is set
	inside        atomic.Bool   // it has passed the module's gate
	state         atomic.Int32
	done          chan error // holds one
}

// begin tells that the worker starts with the job, and whether its caller still waits.
func (j *job) begin(w *worker) bool {
	j.w, j.began = w, time.Now()
	return j.state.CompareAndSwap(jobHanded, jobRunning)
}

// enter tells that the job has passed the module's gate. What came before was waiting, and the library had no part in it.
func (j *job) enter() {
	j.entered = time.Now()
	j.inside.Store(true)
}

// live tells whether the caller still waits.
func (j *job) live() bool { return j.state.Load() == jobRunning }

// finish hands the outcome to the caller, or ends the request when the caller has gone.
func (j *job) finish(err error) {
	if j.state.CompareAndSwap(jobRunning, jobFinished) {
		j.done <- err
		return
	}
	j.end()
}

// abandon tells that the caller gives up. It returns false when the job has just finished, or will at once: done holds its outcome then, or is
// going to.
func (j *job) abandon() bool {
	if j.state.CompareAndSwap(jobHanded, jobAbandoned) {
		return true
	}
	var since time.Time
	if j.leave != nil {
		var left bool
		if since, left = j.leave(); !left {
			return false
		}
	}
	if !j.state.CompareAndSwap(jobRunning, jobAbandoned) {
		return false
	}
	w := j.w
	if j.leave == nil {
		since = j.began
	}
	// A call that outlives its caller by a little is a slow call, and its worker is as busy as any other. It hangs when it stays.
	time.AfterFunc(w.c.t.cfg.StuckAfter-time.Since(since), func() { w.markStuck(j) })
	return true
}

// worker owns one session, and runs one job at a time on it.
type worker struct {
	c  *conn
	ln lane
	s  *session // nil while there is none; touched by the worker's goroutine only

	mu    sync.Mutex // taken before conn.mu and Token.mu
	cur   *job
	stuck bool // cur hangs, and a replacement may have been started
}

// run takes jobs until the connection ends, or the worker is one too many.
func (w *worker) run() {
	defer w.c.workerGone(w)
	defer w.closeSession()
	var tend <-chan struct{}
	if w.ln == laneKeeper {
		tend = w.c.copies.wake
	}
	for {
		select {
		case <-w.c.stop:
			return
		default:
		}
		select {
		case <-w.c.stop:
			return
		case <-tend:
			w.tendCopies()
		case j := <-w.c.lanes[w.ln]:
			if !w.do(j) {
				return
			}
		}
	}
}

// do runs one job, and tells whether the worker should go on.
func (w *worker) do(j *job) bool {
	if !j.begin(w) {
		j.end()
		return true
	}
	w.hold(j)
	c := w.c
	c.t.inUse.Add(1)
	err := errMoved
	full := false
	if c.m.enter(c.epoch, c.stop) {
		j.enter()
		err = w.serve(j)
		if w.ln == laneCrypto && w.s == nil && classify(err) == classFull {
			full, err = c.tooMany(err)
		}
		if w.hangs() {
			w.evict(err) // whatever hung may have left the session in any state
		}
		c.m.leave()
	} else {
		c.t.markLost(c, fmt.Errorf("PKCS#11 module %s was initialised again", c.m.path))
	}
	c.t.inUse.Add(-1)
	j.held = time.Since(j.began)
	c.t.obs.Call(c.t.label, j.call, codeLabel(err), j.began.Sub(j.queued), j.held)
	stuck := w.drop()
	j.finish(err)
	if stuck {
		return c.unstick(w)
	}
	return !full
}

// hold tells what the worker is about to do, so that it can be found to hang.
func (w *worker) hold(j *job) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cur = j
}

// hangs tells whether the worker counts as stuck.
func (w *worker) hangs() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stuck
}

// drop ends what hold began, and tells whether the worker had been counted as stuck.
func (w *worker) drop() (stuck bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	stuck = w.stuck
	w.cur, w.stuck = nil, false
	return stuck
}

// codeLabel is how an error is counted.
func codeLabel(err error) string {
	if err == nil {
		return "CKR_OK"
	}
	if rv, ok := codeOf(err); ok {
		return CodeName(rv)
	}
	return ""
}

// serve runs the job's function, a second time on a fresh session where that is safe and may help.
func (w *worker) serve(j *job) error {
	for again := j.repeatable; ; again = false {
		if err := w.open(); err != nil {
			return err
		}
		if w.ln == laneObjects {
			if err := w.checkSession(); err != nil {
				return err
			}
		}
		err := w.call(j)
		cls := classify(err)
		dead := cls == classSession || cls == classDevice
		if cls == classDevice {
			w.c.t.suspect()
		}
		if dead || w.s.spot != "" {
			w.evict(err)
		}
		if j.writes {
			return w.settle(err)
		}
		if !dead || !again || !j.live() {
			return err
		}
	}
}

// settle makes durable what a job did, also what it did before it failed: an earlier job's work may be waiting too, and "there is no such key"
// is a promise about the state after a loss of power, as success is.
func (w *worker) settle(err error) error {
	if serr := w.c.durable.sync(); serr != nil && (err == nil || errors.Is(err, ErrKeyNotFound)) {
		return serr
	}
	return err
}

// call runs the job's function. A panic in it must not take the process down, since no caller's recover is on this goroutine.
func (w *worker) call(j *job) (err error) {
	defer func() {
		if r := recover(); r != nil {
			w.c.t.log.Error("panic in a token operation", "call", j.call, "panic", r, "stack", string(debug.Stack()))
			w.s.spot = "panic"
			err = fmt.Errorf("hsm: %s: panic: %v", j.call, r)
		}
	}()
	return j.fn(w.s)
}

// open opens the worker's session where it has none.
func (w *worker) open() error {
	if w.s != nil {
		return nil
	}
	flags := uint(pkcs11.CKF_SERIAL_SESSION)
	if w.ln == laneObjects {
		flags |= pkcs11.CKF_RW_SESSION
	}
	h, err := w.c.p.OpenSession(w.c.slot, flags)
	if err != nil {
		if classify(callError("C_OpenSession", err)) == classDevice {
			w.c.t.suspect()
		}
		return callError("C_OpenSession", err)
	}
	w.s = &session{p: w.c.p, h: h, c: w.c, rw: w.ln == laneObjects}
	w.c.open.Add(1)
	return nil
}

// checkSession looks at the session before work that cannot be repeated: it may have died while it was idle. What it returns for a lost
// login is errMoved, since nothing has been done yet.
//
// A session without a login sees public objects only: Destroy would find one half of a pair, or nothing at all, and believe it. So a fresh
// session is looked at too, as the login may have gone with the old one.
func (w *worker) checkSession() error {
	info, err := w.s.p.GetSessionInfo(w.s.h)
	if err != nil {
		w.evict(callError("C_GetSessionInfo", err))
		if err := w.open(); err != nil {
			return err
		}
		if info, err = w.s.p.GetSessionInfo(w.s.h); err != nil {
			return callError("C_GetSessionInfo", err)
		}
	}
	if w.c.info.Flags&pkcs11.CKF_LOGIN_REQUIRED != 0 && info.State != pkcs11.CKS_RW_USER_FUNCTIONS {
		w.c.t.markLost(w.c, &Error{Call: "C_GetSessionInfo", RV: pkcs11.CKR_USER_NOT_LOGGED_IN, kind: ErrUnavailable})
		return errMoved
	}
	return nil
}

// evict closes the session because of err; the next job gets a fresh one. The keeper's session is the anchor of the copies and must live: its
// loss is the loss of the connection.
func (w *worker) evict(err error) {
	if w.s == nil {
		return
	}
	if w.ln == laneKeeper {
		w.s.spot = ""
		w.c.t.markLost(w.c, err)
		return
	}
	w.c.t.evicted.Add(1)
	w.c.t.obs.Evicted(w.c.t.label, codeLabel(err))
	s := w.s
	w.s = nil
	w.c.open.Add(-1)
	w.c.endSession(s.h) // it is dead already, or dies now
}

// closeSession closes the session at the end of the worker. The keeper's goes last, since many tokens end the login and all session objects with
// the last session.
func (w *worker) closeSession() {
	if w.ln == laneKeeper {
		<-w.c.last
	}
	if w.s == nil || !w.c.m.enterNow(w.c.epoch) {
		return
	}
	defer w.c.m.leave()
	if w.ln == laneKeeper && w.c.logout.Load() {
		_ = w.s.p.Logout(w.s.h) // the sessions' end does the same
	}
	w.c.endSession(w.s.h)
	w.s = nil
	w.c.open.Add(-1)
}

// markStuck counts the worker as stuck if it still runs that job, and the library has had it for StuckAfter; else it looks again later. A worker
// that waits at the module's gate, while the module is initialised again for a neighbour, is well: it needs no replacement, must not trip the
// breaker, and must not forbid that initialisation.
//
// It holds mu to the end: a call that comes back meanwhile must find the count complete before it takes it back (drop, unstick), or its lane
// would stay closed.
func (w *worker) markStuck(j *job) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cur != j || w.stuck {
		return
	}
	wait := w.c.t.cfg.StuckAfter
	if j.inside.Load() {
		wait -= time.Since(j.entered)
	}
	if wait > 0 {
		time.AfterFunc(wait, func() { w.markStuck(j) })
		return
	}
	w.stuck = true
	w.c.stick(w, j.call)
}

// exec hands a request to a worker of the lane and waits for the outcome. left tells that ctx ended first while a worker has the job: the
// worker ends the request then, and otherwise the caller does. moved, when it is closed, calls the request back as long as nobody took it.
// queue is decremented when the request leaves the queue.
func (c *conn) exec(ctx context.Context, ln lane, r request, moved <-chan struct{}, queue *atomic.Int64) (left bool, err error) {
	j := &job{request: r, queued: time.Now(), done: make(chan error, 1)}
	select {
	case c.lanes[ln] <- j:
		queue.Add(-1)
	case <-*c.hangs[ln].Load():
		queue.Add(-1)
		return false, fmt.Errorf("%w in PKCS#11 module %s (token %q)", errHangs, c.m.path, c.t.label)
	case <-moved:
		queue.Add(-1)
		return false, errMoved
	case <-c.stop:
		queue.Add(-1)
		return false, errMoved
	case <-ctx.Done():
		queue.Add(-1)
		return false, ended(ctx, r.call)
	}
	select {
	case err = <-j.done:
	case <-ctx.Done():
		if j.abandon() {
			return true, ended(ctx, r.call)
		}
		err = <-j.done
	}
	if tm := timingOf(ctx); tm != nil {
		tm.Queue += j.began.Sub(j.queued)
		tm.Token += j.held
	}
	return false, err
}
