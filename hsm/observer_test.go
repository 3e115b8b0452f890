package hsm

import (
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
)

// watcher counts what an observer is told.
type watcher struct {
	mu     sync.Mutex
	counts map[string]int
	stuck  int
}

func (o *watcher) count(what string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.counts == nil {
		o.counts = map[string]int{}
	}
	o.counts[what]++
}

func (o *watcher) got(what string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.counts[what]
}

func (o *watcher) Call(label, call, code string, queued, held time.Duration) {
	o.count(label + " " + call + " " + code)
	if queued < 0 || held < 0 || queued > time.Minute || held > time.Minute {
		o.count("absurd duration")
	}
}
func (o *watcher) Evicted(label, code string) { o.count(label + " evicted " + code) }
func (o *watcher) Stuck(_ string, change int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.stuck += change
}

func (o *watcher) State(label string, s State, reason string) {
	o.count(label + " " + string(s))
	if (s == StateReady) != (reason == "") {
		o.count("reason and state disagree")
	}
}

func (o *watcher) Initialized(label string, err error) {
	if err != nil {
		o.count(label + " not initialised")
		return
	}
	o.count(label + " initialised")
}

func TestObserver(t *testing.T) {
	w := newWorld(t, true)
	cfg := w.token("alpha")
	cfg.HealthInterval = time.Hour // no canary of its own accord may be inside when the test finalizes
	o := &watcher{}
	tok := w.openWith(cfg, Options{Observer: o})
	check(t, tok.WaitReady(ctx(t)))
	k := aesKey(t, tok, "one")
	works(t, k)
	w.fault.Fail(t, "C_Encrypt", pkcs11.CKR_DATA_LEN_RANGE, 1)
	_, _, err := seal(ctx(t), k)
	for err == nil { // the canary took the fault
		w.fault.Fail(t, "C_Encrypt", pkcs11.CKR_DATA_LEN_RANGE, 1)
		_, _, err = seal(ctx(t), k)
	}
	w.fault.Hang(t, "C_EncryptInit")
	_, _, err = seal(short(t, 30*time.Millisecond), k)
	if err == nil {
		t.Fatal("a hanging seal succeeded")
	}
	until(t, "it hangs", func() bool { return tok.Status().Stuck > 0 })
	w.fault.Clear(t, "C_EncryptInit")
	until(t, "it has returned", func() bool { return tok.Status().Stuck == 0 })
	check(t, tok.WaitReady(ctx(t)))
	until(t, "nothing is inside", func() bool { return tok.Status().InUse == 0 })
	p := pkcs11.New(w.module)
	check(t, p.Finalize())
	works(t, k) // finds out, and is healed
	until(t, "it was healed", func() bool { return tok.Status().Generation > 1 })
	check(t, tok.WaitReady(ctx(t)))
	check(t, tok.Close(ctx(t)))
	for _, what := range []string{
		"alpha Seal CKR_OK", "alpha Open CKR_OK", "alpha Generate CKR_OK", "alpha Canary CKR_OK", "alpha Seal CKR_DATA_LEN_RANGE",
		"alpha evicted CKR_DATA_LEN_RANGE", "alpha ready", "alpha closed",
	} {
		if o.got(what) == 0 {
			t.Errorf("not told: %s", what)
		}
	}
	for _, what := range []string{"absurd duration", "reason and state disagree"} {
		if n := o.got(what); n != 0 {
			t.Errorf("%s: %d times", what, n)
		}
	}
	if o.stuck != 0 {
		t.Errorf("stuck adds up to %d", o.stuck)
	}
}
