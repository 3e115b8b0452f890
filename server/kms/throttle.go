package kms

import (
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// throttle bounds how many requests are under way and how many an account may
// make in a second.
type throttle struct {
	limits   Limits
	now      func() time.Time
	inFlight atomic.Int64
	// limiters has one per account and plane. Accounts are those of the
	// directory, so their number is bounded.
	limiters sync.Map // throttleKey -> *rate.Limiter
}

type throttleKey struct {
	account AccountID
	plane   keyholdv1.Plane
}

func newThrottle(l Limits, now func() time.Time) *throttle {
	return &throttle{limits: l, now: now}
}

// enter is step 3. leave must be called after it, whatever it returned. At any rate
// means that only what is under way is looked at.
func (t *throttle) enter(account AccountID, plane keyholdv1.Plane, atAnyRate bool) error {
	if t.inFlight.Add(1) > int64(t.limits.InFlight) {
		return errorf(CodeThrottling, "Rate exceeded: more than %d requests are under way.", t.limits.InFlight)
	}
	perSecond := t.limits.DataPerSecond
	if plane == keyholdv1.Plane_PLANE_CONTROL {
		perSecond = t.limits.ControlPerSecond
	}
	if perSecond == 0 || atAnyRate {
		return nil
	}
	key := throttleKey{account, plane}
	l, ok := t.limiters.Load(key)
	if !ok {
		l, _ = t.limiters.LoadOrStore(key, rate.NewLimiter(rate.Limit(perSecond), perSecond))
	}
	if !l.(*rate.Limiter).AllowN(t.now(), 1) { //nolint:forcetypeassert // the only type stored
		return errorf(CodeThrottling, "Rate exceeded: this account may make %d such requests per second.", perSecond)
	}
	return nil
}

func (t *throttle) leave() { t.inFlight.Add(-1) }

// sealRate bounds what is sealed; see SealKey. Each account has a rate of its own
// in front of the one of all: no account takes all of that.
type sealRate struct {
	all      *rate.Limiter
	accounts sync.Map // AccountID -> *rate.Limiter; bounded as in throttle
}

func newSealRate() *sealRate {
	return &sealRate{all: rate.NewLimiter(maxSealsPerSecond, sealBurst)}
}

// enter takes a place for one seal.
func (r *sealRate) enter(account AccountID, now time.Time) error {
	l, ok := r.accounts.Load(account)
	if !ok {
		l, _ = r.accounts.LoadOrStore(account, rate.NewLimiter(accountSealsPerSecond, accountSealBurst))
	}
	if !l.(*rate.Limiter).AllowN(now, 1) { //nolint:forcetypeassert // the only type stored
		return errorf(CodeThrottling, "Rate exceeded: an account may make %d access key per second, and %d at once.", accountSealsPerSecond, accountSealBurst)
	}
	if !r.all.AllowN(now, 1) {
		return errorf(CodeThrottling, "Rate exceeded: %d access keys per second may be made.", maxSealsPerSecond)
	}
	return nil
}
