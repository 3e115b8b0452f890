package hsm

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// ErrLoanOver is what a call under a loan answers that cannot be done on the session that was lent, and of all later calls of that loan. The call
// may be made again without the loan, once it is over: it has then the repetitions and the healing of any call.
var ErrLoanOver = errors.New("hsm: not on a session that is lent")

// Lend calls run with a context under which calls of the token's keys use one session without handing over: for many short calls in a row, the
// hand-over between goroutines costs as much as some of the calls. run is called once, on another goroutine, and may use the context on that
// one only. What is done under it has errors, metrics and times of its own.
//
// Whatever needs more than the session, because it was lost, or the login, or because an object has to be searched for, is ErrLoanOver: run must
// return then. A loan that waited for the token to be mended would hold up the mending.
//
// Lend returns true when run has returned. It also returns true when ctx, or CallTimeout, ends while a call hangs in the library: run has not
// returned then, and may never; if the call comes back, it and all later ones of run fail. So run must not, after a call has failed, touch what
// belongs to the caller of Lend.
//
// Lend returns false when run was not called and never will be: there was no session in time, or no token. A session that is lent is lost to all
// others: keep it short.
func (t *Token) Lend(ctx context.Context, run func(ctx context.Context)) bool {
	ctx, cancel := bound(ctx, t.cfg.CallTimeout)
	defer cancel()
	l := &loan{t: t}
	_ = t.run(ctx, laneCrypto, request{call: "Lend", leave: l.leave, fn: func(s *session) error {
		if !l.state.CompareAndSwap(loanWaiting, loanFree) {
			return nil
		}
		l.s = s
		run(context.WithValue(ctx, loanKey{}, l))
		return l.spoilt // the worker closes the session that it came from
	}})
	return !l.state.CompareAndSwap(loanWaiting, loanOff) && l.state.Load() != loanOff
}

type loanKey struct{}

// loan is one session that is lent. Only the goroutine that run is on touches s and spoilt.
type loan struct {
	t      *Token
	s      *session
	spoilt error // what ended the loan

	state atomic.Int32
	// begun is when the call under way began, in nanoseconds of Unix time.
	begun atomic.Int64
}

// The states of a loan. A call may only begin in loanFree, so that its caller is known to be gone or to wait for it.
const (
	loanWaiting int32 = iota // for a session
	loanFree                 // run is between two calls
	loanCalling              // a call is in the library
	loanEnding               // Lend's time is over, and it waits for run, which finds that all calls fail
	loanLeft                 // Lend's time was over while a call was in the library; nobody waits for run
	loanOff                  // Lend's time was over before there was a session: run is not called
)

// loanOf returns the token's loan that ctx is of, or nil.
func (t *Token) loanOf(ctx context.Context) *loan {
	if l, _ := ctx.Value(loanKey{}).(*loan); l != nil && l.t == t {
		return l
	}
	return nil
}

// leave tells whether the loan may be left now, because a call hangs or is at least under way, and since when. If not it ends very soon, as no call
// begins any more.
func (l *loan) leave() (since time.Time, left bool) {
	for {
		switch {
		case l.state.CompareAndSwap(loanWaiting, loanOff):
			return time.Now(), true
		case l.state.CompareAndSwap(loanFree, loanEnding):
			return time.Time{}, false
		case l.state.CompareAndSwap(loanCalling, loanLeft):
			return time.Unix(0, l.begun.Load()), true
		}
	}
}

// use runs fn on the lent session.
func (l *loan) use(ctx context.Context, call string, resolve func(context.Context, *conn) (*aim, error), fn func(*session, *aim) error) error {
	if l.spoilt != nil {
		return ErrLoanOver
	}
	a, err := resolve(ctx, l.s.c)
	if err != nil {
		return err
	}
	r := request{aim: a}
	defer r.letGo()
	began := time.Now()
	l.begun.Store(began.UnixNano())
	if ctx.Err() != nil || !l.state.CompareAndSwap(loanFree, loanCalling) {
		return l.ended(ctx, call)
	}
	defer func() {
		if p := recover(); p != nil {
			l.s.spot = "panic"
			l.spoilt = unavailable("panic in %s", call)
			l.state.CompareAndSwap(loanCalling, loanFree)
			panic(p)
		}
	}()
	err = fn(l.s, a)
	held := time.Since(began)
	if !l.state.CompareAndSwap(loanCalling, loanFree) {
		return l.ended(ctx, call)
	}
	l.t.obs.Call(l.t.label, call, codeLabel(err), 0, held)
	if tm := timingOf(ctx); tm != nil {
		tm.Token += held
	}
	return l.settle(a, err)
}

// settle says what an error means for the loan. What the usual way would repeat, or mend first, is left to it.
func (l *loan) settle(a *aim, err error) error {
	switch classify(err) {
	case classNone, classPIN, classFull:
		if l.s.spot != "" {
			l.spoilt = err
		}
		return err
	case classHandle:
		if a.in != nil {
			a.stale()
		}
	}
	l.spoilt = err
	return fmt.Errorf("%w: %w", ErrLoanOver, err)
}

// ended is the error of a call that came too late.
func (l *loan) ended(ctx context.Context, call string) error {
	if ctx.Err() == nil {
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		return ended(ctx, call)
	}
	return ended(ctx, call)
}
