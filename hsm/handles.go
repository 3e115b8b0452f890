package hsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/miekg/pkcs11"
)

// objectName is how a token object is found. Labels are not part of it: they may be changed by anybody who holds the PIN.
type objectName struct {
	class uint
	id    string // CKA_ID
}

// missRemembered is how long a look-up that found nothing, or two, is believed: what another program did it may undo. A look-up costs as much as the token has objects (0.2 s at 10,000 on
// SoftHSM), and calls for a key that is gone must not occupy the lock around token objects.
const missRemembered = time.Second

// maxMisses bounds the memory of what was not found.
const maxMisses = 4096

// index knows the handles of one connection's token objects. Handles are valid in all sessions of the process, and as long as the login lasts.
type index struct {
	mu     sync.RWMutex
	byName map[objectName]indexed
	missed map[objectName]time.Time
}

type indexed struct {
	h         pkcs11.ObjectHandle
	duplicate bool
	at        time.Time // when duplicate was found out
}

func newIndex() *index {
	return &index{byName: map[objectName]indexed{}, missed: map[objectName]time.Time{}}
}

// get returns the handle of an object. It knows of no object when found is false; err says that there are two, or lately were none.
func (x *index) get(n objectName) (h pkcs11.ObjectHandle, found bool, err error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	e, ok := x.byName[n]
	switch {
	case ok && e.duplicate && time.Since(e.at) < missRemembered:
		return 0, true, ErrDuplicate
	case ok && e.duplicate:
		return 0, false, nil
	case ok:
		return e.h, true, nil
	}
	if at, ok := x.missed[n]; ok && time.Since(at) < missRemembered {
		return 0, true, ErrKeyNotFound
	}
	return 0, false, nil
}

// put remembers what a search found.
func (x *index) put(n objectName, found []pkcs11.ObjectHandle) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.missed, n)
	delete(x.byName, n)
	switch len(found) {
	case 0:
		if len(x.missed) >= maxMisses {
			clear(x.missed)
		}
		x.missed[n] = time.Now()
	case 1:
		x.byName[n] = indexed{h: found[0]}
	default:
		x.byName[n] = indexed{duplicate: true, at: time.Now()}
	}
}

// add remembers one more object.
func (x *index) add(n objectName, h pkcs11.ObjectHandle) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.missed, n)
	if e, ok := x.byName[n]; ok && e.h != h {
		x.byName[n] = indexed{duplicate: true, at: time.Now()}
		return
	}
	x.byName[n] = indexed{h: h}
}

// drop forgets a handle, if it still is the one that is known.
func (x *index) drop(n objectName, h pkcs11.ObjectHandle) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.byName[n].h == h {
		delete(x.byName, n)
	}
}

// forget forgets all objects with that CKA_ID.
func (x *index) forget(id string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, class := range keyClasses {
		delete(x.byName, objectName{class, id})
		delete(x.missed, objectName{class, id})
	}
}

// knows tells whether an object of any class is known by that CKA_ID.
func (x *index) knows(id string) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if _, ok := x.byName[objectName{pkcs11.CKO_CERTIFICATE, id}]; ok {
		return true
	}
	for _, class := range keyClasses {
		if _, ok := x.byName[objectName{class, id}]; ok {
			return true
		}
	}
	return false
}

func (x *index) len() int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.byName)
}

// keyClasses are the classes of objects that Keyhold uses.
var keyClasses = [...]uint{pkcs11.CKO_SECRET_KEY, pkcs11.CKO_PRIVATE_KEY, pkcs11.CKO_PUBLIC_KEY}

// load reads the names of all token objects in one pass, on a session that nobody else uses. It costs about 50 us per object on SoftHSM.
func (c *conn) load(s *session) error {
	objects, err := s.find(tokenObjects(), maxObjects)
	if err != nil {
		return err
	}
	if len(objects) == maxObjects {
		return fmt.Errorf("token %q has %d objects or more; that is too many", c.t.label, maxObjects)
	}
	canary := []byte(canaryLabel)
	for _, h := range objects {
		attrs, err := s.p.GetAttributeValue(s.h, h, []*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_CLASS, nil), pkcs11.NewAttribute(pkcs11.CKA_ID, nil), pkcs11.NewAttribute(pkcs11.CKA_LABEL, nil),
		})
		if err != nil {
			if classOf(mustCode(err)) == classNone || classOf(mustCode(err)) == classHandle {
				continue // no key (data objects have no CKA_ID), or destroyed by another process since
			}
			return s.fail("C_GetAttributeValue", err)
		}
		class := ulong(attrs[0].Value)
		c.index.add(objectName{class, string(attrs[1].Value)}, h)
		if class == pkcs11.CKO_SECRET_KEY && bytes.Equal(attrs[2].Value, canary) {
			c.sawCanary(h)
		}
	}
	return nil
}

// tokenObjects finds all objects of the token, and no session copies.
func tokenObjects() []*pkcs11.Attribute {
	return []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true)}
}

// maxObjects bounds how many objects of a token are read.
const maxObjects = 1 << 20

func mustCode(err error) uint {
	rv, _ := codeOf(err)
	return rv
}

// Key is one key in the token: one secret object, or a key pair. It holds no handle of its own and stays good over every healing. It is safe
// for concurrent use.
type Key struct {
	t       *Token
	spec    KeySpec
	purpose Purpose
	id      string // CKA_ID
	spki    atomic.Pointer[[]byte]
}

// keyName makes the cache of keys forget nothing that matters: one id with another spec is another key.
type keyName struct {
	id      string
	spec    KeySpec
	purpose Purpose
}

// Key returns the key with that CKA_ID. It does no I/O: whether the token has such a key is found out by its first use. The same arguments
// give the same *Key as long as it is neither released nor destroyed.
func (t *Token) Key(spec KeySpec, purpose Purpose, id []byte) *Key {
	t.keysMu.Lock()
	defer t.keysMu.Unlock()
	k := t.keys[keyName{string(id), spec, purpose}]
	if k == nil {
		k = &Key{t: t, spec: spec, purpose: purpose, id: string(id)}
		t.keys[keyName{k.id, spec, purpose}] = k
	}
	return k
}

// Release drops the session copy of the key, after its last user has left it. The key stays usable. Call it when the key was disabled or
// deleted by whoever decides that: a copy goes on working when the token object is gone.
func (k *Key) Release() {
	// Not the state's connection: one that is out of service for a moment comes back with its copies.
	k.t.mu.Lock()
	c := k.t.details.conn
	k.t.mu.Unlock()
	if c != nil {
		c.copies.drop(k.object())
	}
	k.t.keysMu.Lock()
	delete(k.t.keys, keyName{k.id, k.spec, k.purpose})
	k.t.keysMu.Unlock()
}

// object is the name of the object that does the key's work.
func (k *Key) object() objectName {
	info, _ := k.spec.info()
	return objectName{info.class(), k.id}
}

// use runs fn with the handle of the key's secret or private object: a session copy where there is one, else the token's object. Everything
// that Token.use says holds. A stale handle is found again, and fn run a second time with it.
func (k *Key) use(ctx context.Context, call string, fn func(s *session, h pkcs11.ObjectHandle) error, bufs ...[]byte) error {
	return k.t.useObject(ctx, call, k.object(), k.copyable(), fn, bufs)
}

// usePublic is use for the key pair's public object.
func (k *Key) usePublic(ctx context.Context, call string, fn func(s *session, h pkcs11.ObjectHandle) error) error {
	return k.t.useObject(ctx, call, objectName{pkcs11.CKO_PUBLIC_KEY, k.id}, false, fn, nil)
}

// copyable tells whether a session copy pays: with RSA the arithmetic costs many times what opening the object's file does. And a copy of a
// wrapping key must be limited as its original is.
func (k *Key) copyable() bool {
	switch {
	case k.spec == RSA2048 || k.spec == RSA3072 || k.spec == RSA4096:
		return false
	case k.purpose == PurposeWrap:
		caps := k.t.caps.Load()
		return caps != nil && caps.Wrapping.Copies
	}
	return true
}

// useObject runs fn with the handle of an object.
func (t *Token) useObject(ctx context.Context, call string, name objectName, copyable bool, fn func(*session, pkcs11.ObjectHandle) error, bufs [][]byte) error {
	resolve := func(ctx context.Context, c *conn) (*aim, error) { return c.resolve(ctx, name, copyable) }
	return t.useAim(ctx, call, resolve, func(s *session, a *aim) error { return fn(s, a.h) }, bufs)
}

// useTwo runs fn with the handles of two objects, the second of which is the token's and no session copy. If either is stale both are found
// again: not every token tells which one it means.
func (t *Token) useTwo(ctx context.Context, call string, name objectName, copyable bool, second objectName, fn func(s *session, h, second pkcs11.ObjectHandle) error) error {
	resolve := func(ctx context.Context, c *conn) (*aim, error) {
		b, err := c.resolve(ctx, second, false)
		if err != nil {
			return nil, err
		}
		a, err := c.resolve(ctx, name, copyable) // last, since it may hold a copy
		if err != nil {
			return nil, err
		}
		a.second = b
		return a, nil
	}
	return t.useAim(ctx, call, resolve, func(s *session, a *aim) error { return fn(s, a.h, a.second.h) }, nil)
}

// useAim runs fn with what resolve finds.
func (t *Token) useAim(ctx context.Context, call string, resolve func(context.Context, *conn) (*aim, error), fn func(*session, *aim) error, bufs [][]byte) error {
	if l := t.loanOf(ctx); l != nil {
		defer wipeAll(bufs)
		return l.use(ctx, call, resolve, fn)
	}
	// Each attempt has an aim of its own: an attempt that was abandoned may still be running with the old one.
	var current *aim
	r := request{call: call, bufs: bufs, repeatable: true}
	r.prepare = func(ctx context.Context, c *conn) (*aim, error) {
		a, err := resolve(ctx, c)
		current = a
		return a, err
	}
	r.fn = func(s *session) error { return fn(s, current) }
	return t.run(ctx, laneCrypto, r)
}

// resolve finds the object's handle, in the index or else in the token.
func (c *conn) resolve(ctx context.Context, name objectName, copyable bool) (*aim, error) {
	h, found, err := c.index.get(name)
	if err != nil {
		return nil, err
	}
	if !found {
		if h, err = c.findAgain(ctx, name); err != nil {
			return nil, err
		}
	}
	a := &aim{name: name, h: h, in: c}
	if copyable && c.t.copies() {
		if a.copy = c.copies.acquire(name, h); a.copy != nil {
			a.h = a.copy.h
		}
	}
	return a, nil
}

// copies tells whether session copies are in use.
func (t *Token) copies() bool {
	caps := t.caps.Load()
	return t.cfg.MaxCopies > 0 && caps != nil && caps.SessionCopies
}

// stale drops what the attempt aimed at: the token said that there is no such object.
func (a *aim) stale() {
	if a.second != nil {
		a.second.stale()
	}
	if a.copy != nil {
		a.in.copies.drop(a.name)
		return
	}
	a.in.copies.drop(a.name)
	a.in.index.drop(a.name, a.h)
}

// findAgain looks for an object in the token, under the lock of token objects.
func (c *conn) findAgain(ctx context.Context, name objectName) (pkcs11.ObjectHandle, error) {
	if c.t.loanOf(ctx) != nil {
		return 0, ErrLoanOver // a session is not lent for the time of a search
	}
	err := c.t.search(ctx, "FindKey", func(s *session) error {
		if s.c != c {
			return nil // the caller finds out
		}
		if _, found, err := c.index.get(name); found || err != nil {
			return nil //nolint:nilerr // somebody found it, or two of it, while we waited for the lock: the caller reads the index next
		}
		objects, err := s.find([]*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), // session copies bear the same CKA_ID
			pkcs11.NewAttribute(pkcs11.CKA_CLASS, name.class),
			pkcs11.NewAttribute(pkcs11.CKA_ID, []byte(name.id)),
		}, 2)
		if err == nil {
			c.index.put(name, objects)
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	if c.t.state.Load().conn != c {
		return 0, errMoved
	}
	h, found, err := c.index.get(name)
	if errors.Is(err, ErrKeyNotFound) || !found {
		if err := c.believable(ctx); err != nil {
			return 0, err
		}
		return 0, ErrKeyNotFound
	}
	return h, err
}

// believable returns nil when what the token did not list is not there. SoftHSM finds nothing, without an error, when its folder has gone: only
// a token that is well can know that it has no such key.
func (c *conn) believable(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.t.cfg.CallTimeout)
	defer cancel()
	if err := c.checkCanary(ctx); err != nil && !errors.Is(err, errNoCanary) {
		c.t.nudge()
		return unavailable("token %q lost sight of its objects: %w", c.t.label, err)
	}
	return nil
}

// remember tells the connection of an object that was just created on session s, which must be one of manage.
func (s *session) remember(class uint, id []byte, label string, h pkcs11.ObjectHandle) {
	// put, not add: nothing else bears the name, or the caller would have found it. What the index still knows another process has destroyed.
	s.c.index.put(objectName{class, string(id)}, []pkcs11.ObjectHandle{h})
	if class == pkcs11.CKO_SECRET_KEY && label == canaryLabel {
		s.c.sawCanary(h)
	}
}

// forget drops all handles and copies of the objects with that CKA_ID, because they were or are being destroyed on session s, which must be
// one of manage.
func (s *session) forget(id []byte) {
	name := string(id)
	s.c.index.forget(name)
	for _, class := range keyClasses {
		s.c.copies.drop(objectName{class, name})
	}
	t := s.c.t
	t.keysMu.Lock()
	defer t.keysMu.Unlock()
	for kn := range t.keys {
		if kn.id == name {
			delete(t.keys, kn)
		}
	}
}

const ulongBytes = int(unsafe.Sizeof(uint(0)))

// ulong reads a CK_ULONG attribute, 0 when it has another length.
func ulong(b []byte) uint {
	if len(b) != ulongBytes {
		return 0
	}
	var v uint
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&v)), ulongBytes), b) // in the machine's byte order
	return v
}
