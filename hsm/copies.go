package hsm

import (
	linked "container/list"
	"sync"
	"time"

	"github.com/miekg/pkcs11"
)

// copyAfter is the use of a key at which it becomes a session copy: a copy costs as much as two uses of the token object.
const copyAfter = 3

// copies holds the session copies of one connection's hot keys: objects in memory that only this process sees, as sensitive and
// non-extractable as their originals, and 2.4 times cheaper to use on SoftHSM, which opens, locks and reads files for every use of a token
// object. They belong to the anchor session, whose worker alone makes and destroys them.
//
// A copy is destroyed only after its last user has left it: destroying one in use makes the use fail in ways that read like a wrong key.
type copies struct {
	max  int
	wake chan struct{} // asks the keeper to tend; holds one

	mu     sync.Mutex
	byName map[objectName]*keyCopy
	wanted map[objectName]pkcs11.ObjectHandle // originals that the keeper should copy
	uses   map[objectName]int                 // of keys without a copy; refused counts as copyRefused
	recent *linked.List                       // of *keyCopy: those in byName, the last used first
	doomed []pkcs11.ObjectHandle              // copies that the keeper should destroy
}

// copyRefused marks a key that the token would not copy.
const copyRefused = -1

// keyCopy is one session copy. Place, refs and dead are guarded by copies.mu.
type keyCopy struct {
	name  objectName
	h     pkcs11.ObjectHandle
	of    pkcs11.ObjectHandle // the token object that it was made of
	place *linked.Element     // in copies.recent
	refs  int
	dead  bool
}

func newCopies(limit int) *copies {
	return &copies{
		max: limit, wake: make(chan struct{}, 1),
		byName: map[objectName]*keyCopy{}, wanted: map[objectName]pkcs11.ObjectHandle{}, uses: map[objectName]int{}, recent: linked.New(),
	}
}

// acquire returns the copy of a key, which the caller must release, or nil where there is none (yet).
func (x *copies) acquire(name objectName, original pkcs11.ObjectHandle) *keyCopy {
	x.mu.Lock()
	defer x.mu.Unlock()
	if k := x.byName[name]; k != nil {
		if k.of == original {
			k.refs++
			x.recent.MoveToFront(k.place)
			return k
		}
		x.kill(name) // another key has taken the name since
	}
	n := x.uses[name]
	if n == copyRefused {
		return nil
	}
	if len(x.uses) > 4*x.max {
		clear(x.uses)
	}
	x.uses[name] = n + 1
	if n+1 == copyAfter {
		x.wanted[name] = original
		x.nudge()
	}
	return nil
}

// release ends a use.
func (x *copies) release(k *keyCopy) {
	x.mu.Lock()
	defer x.mu.Unlock()
	k.refs--
	x.bury(k)
}

// drop takes the copy of a key out of use, and makes the keeper destroy it after its last user.
func (x *copies) drop(name objectName) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.wanted, name)
	delete(x.uses, name)
	x.kill(name)
}

// kill marks a copy dead. The caller holds mu.
func (x *copies) kill(name objectName) {
	k := x.byName[name]
	if k == nil {
		return
	}
	delete(x.byName, name)
	x.recent.Remove(k.place)
	k.dead = true
	x.bury(k)
}

// bury hands a dead copy without users to the keeper. The caller holds mu.
func (x *copies) bury(k *keyCopy) {
	if k.dead && k.refs == 0 {
		x.doomed = append(x.doomed, k.h)
		x.nudge()
	}
}

func (x *copies) nudge() {
	select {
	case x.wake <- struct{}{}:
	default:
	}
}

// next returns what the keeper should do.
func (x *copies) next() (doomed []pkcs11.ObjectHandle, name objectName, original pkcs11.ObjectHandle, more bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	doomed, x.doomed = x.doomed, nil
	for name, original = range x.wanted {
		return doomed, name, original, true
	}
	return doomed, name, 0, false
}

// put brings a new copy into use. It returns false when the key was dropped or replaced meanwhile; the keeper destroys the copy then.
func (x *copies) put(name objectName, original, h pkcs11.ObjectHandle) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.wanted[name] != original {
		return false
	}
	delete(x.wanted, name)
	delete(x.uses, name)
	for len(x.byName) >= x.max {
		x.kill(x.recent.Back().Value.(*keyCopy).name) //nolint:forcetypeassert // the only type in it
	}
	k := &keyCopy{name: name, h: h, of: original}
	k.place = x.recent.PushFront(k)
	x.byName[name] = k
	return true
}

// refuse remembers that a key cannot be copied.
func (x *copies) refuse(name objectName) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.wanted, name)
	x.uses[name] = copyRefused
}

// len returns how many copies are in use.
func (x *copies) len() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.byName)
}

// tendCopies makes the copies that are wanted and destroys those that are done with. It runs on the keeper's goroutine.
func (w *worker) tendCopies() {
	c := w.c
	if w.s == nil || !c.m.enter(c.epoch, c.stop) {
		return
	}
	// Nobody waits for this, so nobody gives up; but a call that hangs must be known, or the module would be finalized under it in the end.
	j := &job{request: request{call: "CopyKey"}}
	j.enter()
	w.hold(j)
	watch := time.AfterFunc(c.t.cfg.CallTimeout, func() { w.markStuck(j) })
	defer func() {
		watch.Stop()
		c.m.leave()
		if w.drop() {
			c.unstick(w)
		}
	}()
	for {
		doomed, name, original, more := c.copies.next()
		for _, h := range doomed {
			if err := w.s.p.DestroyObject(w.s.h, h); err != nil {
				c.t.log.Warn("a session copy could not be destroyed", "err", callError("C_DestroyObject", err))
			}
		}
		if !more {
			return
		}
		w.copyKey(name, original)
	}
}

// copyKey makes one session copy, and proves that it guards the key as its original does.
func (w *worker) copyKey(name objectName, original pkcs11.ObjectHandle) {
	c := w.c
	exportable, err := w.s.flag(original, pkcs11.CKA_EXTRACTABLE)
	if err != nil {
		w.copyFailed(name, err)
		return
	}
	h, err := w.s.p.CopyObject(w.s.h, original, copyTemplate(exportable))
	if err != nil {
		w.copyFailed(name, callError("C_CopyObject", err))
		return
	}
	if err := w.checkCopy(h); err != nil {
		c.copies.refuse(name)
		c.t.log.Error("the token made a session copy that guards the key less than its original; it is not used", "err", err)
		_ = w.s.p.DestroyObject(w.s.h, h)
		return
	}
	if !c.copies.put(name, original, h) {
		_ = w.s.p.DestroyObject(w.s.h, h)
	}
}

// copyTemplate is what a session copy has otherwise than its original. The copy of an exportable key cannot be exported; of another key SoftHSM
// refuses to set what is set already.
func copyTemplate(exportable bool) []*pkcs11.Attribute {
	t := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false)}
	if exportable {
		t = append(t, pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, false))
	}
	return append(t, pkcs11.NewAttribute(pkcs11.CKA_MODIFIABLE, false)) // last: SoftHSM applies attributes in order
}

// copyFailed says what comes of a key that was not copied.
func (w *worker) copyFailed(name objectName, err error) {
	c := w.c
	c.t.log.Debug("a key was not copied into the session", "err", err)
	switch classify(err) {
	case classSession, classLogin, classModule:
		c.copies.drop(name)
		c.t.markLost(c, err) // the anchor of all copies is gone, and nobody else uses its session
	case classHandle:
		c.copies.drop(name) // destroyed meanwhile; whoever uses it next finds out
	default:
		c.copies.refuse(name)
	}
}

// checkCopy reads the attributes of a copy back.
func (w *worker) checkCopy(h pkcs11.ObjectHandle) error {
	want := []struct {
		attr  uint
		value bool
		name  string
	}{
		{pkcs11.CKA_TOKEN, false, "CKA_TOKEN"},
		{pkcs11.CKA_SENSITIVE, true, "CKA_SENSITIVE"},
		{pkcs11.CKA_EXTRACTABLE, false, "CKA_EXTRACTABLE"},
		{pkcs11.CKA_MODIFIABLE, false, "CKA_MODIFIABLE"},
	}
	query := make([]*pkcs11.Attribute, len(want))
	for i, a := range want {
		query[i] = pkcs11.NewAttribute(a.attr, nil)
	}
	got, err := w.s.p.GetAttributeValue(w.s.h, h, query)
	if err != nil {
		return callError("C_GetAttributeValue", err)
	}
	for i, a := range want {
		if v := got[i].Value; len(v) != 1 || (v[0] != 0) != a.value {
			return &attributeError{a.name}
		}
	}
	switch wraps, err := w.s.flag(h, pkcs11.CKA_UNWRAP); {
	case isCode(err, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID):
		return nil
	case err != nil:
		return err
	case wraps:
		return w.s.checkTemplates(h, &w.c.t.caps.Load().Wrapping)
	}
	return nil
}

// attributeError tells which attribute of an object is not as it should be.
type attributeError struct{ name string }

func (e *attributeError) Error() string { return e.name + " is not as asked for" }
