package client_test

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/keyhold/keyhold/client"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

func coalescer(t *testing.T, w *wire, cfg client.CoalescerConfig, retry client.Retry) *client.Coalescer {
	t.Helper()
	if cfg.MaxInFlight == 0 {
		cfg.MaxInFlight = 1 // what is sent together is easier to say then
	}
	c, err := client.NewCoalescerOver(w, client.Config{Retry: retry, Timeout: 30 * time.Second}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// calling is a call that is under way.
type calling struct {
	done chan struct{}
	resp *keyholdv1.EncryptResponse
	err  error
}

// start begins to encrypt text and returns when the call waits.
func start(ctx context.Context, c *client.Coalescer, text string) *calling {
	k := &calling{done: make(chan struct{})}
	go func() {
		defer close(k.done)
		k.resp, k.err = c.Encrypt(ctx, &keyholdv1.EncryptRequest{KeyId: "k", Plaintext: []byte(text)})
	}()
	synctest.Wait()
	return k
}

func (k *calling) returned() bool {
	select {
	case <-k.done:
		return true
	default:
		return false
	}
}

func wantSealed(t *testing.T, text string, k *calling) {
	t.Helper()
	<-k.done
	if k.err != nil || string(k.resp.GetCiphertextBlob()) != "sealed "+text {
		t.Errorf("%s: %q, %v", text, k.resp.GetCiphertextBlob(), k.err)
	}
}

func wantRequests(t *testing.T, w *wire, want ...string) {
	t.Helper()
	synctest.Wait()
	if diff := cmp.Diff(want, w.requests()); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

// TestCoalescer: alone when nothing is under way, together when something is.
func TestCoalescer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		c := coalescer(t, w, client.CoalescerConfig{}, client.Retry{})
		a := start(t.Context(), c, "a")
		wantRequests(t, w, "a")
		b, d := start(t.Context(), c, "b"), start(t.Context(), c, "d")
		wantRequests(t, w, "a")
		w.go1()
		wantSealed(t, "a", a)
		wantRequests(t, w, "a", "[b d]")
		e := start(t.Context(), c, "e")
		w.go1()
		wantSealed(t, "b", b)
		wantSealed(t, "d", d)
		wantRequests(t, w, "a", "[b d]", "e") // one that waits is sent as it is
		w.go1()
		wantSealed(t, "e", e)
		w.go1()
		wantSealed(t, "f", start(t.Context(), c, "f"))
		wantRequests(t, w, "a", "[b d]", "e", "f")
		c.Close()
	})
}

func TestCoalescerInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		c := coalescer(t, w, client.CoalescerConfig{MaxInFlight: client.DefaultMaxInFlight}, client.Retry{})
		for _, text := range []string{"a", "b", "c", "d"} {
			start(t.Context(), c, text)
		}
		wantRequests(t, w, "a", "b")
		w.go1()
		wantRequests(t, w, "a", "b", "[c d]")
		start(t.Context(), c, "e")
		wantRequests(t, w, "a", "b", "[c d]")
		w.goAll()
		c.Close()
		wantRequests(t, w, "a", "b", "[c d]", "e")
	})
}

// TestCoalescerBatchSize: at most 100 items and a mebibyte, in their order.
func TestCoalescerBatchSize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		c := coalescer(t, w, client.CoalescerConfig{}, client.Retry{})
		start(t.Context(), c, "first")
		var want []string
		for i := range 201 {
			text := fmt.Sprint(i)
			start(t.Context(), c, text)
			want = append(want, text)
		}
		w.goAll()
		c.Close()
		wantRequests(t, w, "first", fmt.Sprint(want[:100]), fmt.Sprint(want[100:200]), "200")
	})
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		c := coalescer(t, w, client.CoalescerConfig{}, client.Retry{})
		start(t.Context(), c, "first")
		long := strings.Repeat("x", 60<<10)
		for range 20 {
			start(t.Context(), c, long)
		}
		start(t.Context(), c, strings.Repeat("x", 65<<10)) // can never be valid: alone, at once
		synctest.Wait()
		if got := len(w.requests()); got != 2 {
			t.Errorf("%d requests, want the first and the one that is too long", got)
		}
		w.goAll()
		c.Close()
		for _, r := range w.requests()[2:] {
			if len(r) > 1<<20 {
				t.Errorf("a batch of %d bytes", len(r))
			}
		}
		if got := len(w.requests()); got != 4 {
			t.Errorf("%d requests, want two batches more", got)
		}
	})
}

// TestCoalescerLeavesWaiting: who leaves the queue is not sent.
func TestCoalescerLeavesWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		c := coalescer(t, w, client.CoalescerConfig{}, client.Retry{})
		a := start(t.Context(), c, "a")
		ctx, cancel := context.WithCancel(t.Context())
		b, d, e := start(ctx, c, "b"), start(t.Context(), c, "d"), start(t.Context(), c, "e")
		cancel()
		synctest.Wait()
		if !b.returned() || status.Code(b.err) != codes.Canceled {
			t.Errorf("who left: returned %t, %v, want CANCELED", b.returned(), b.err)
		}
		gone := start(ctx, c, "never")
		if !gone.returned() || status.Code(gone.err) != codes.Canceled {
			t.Errorf("a context that had ended: returned %t, %v, want CANCELED", gone.returned(), gone.err)
		}
		w.goAll()
		wantSealed(t, "a", a)
		wantSealed(t, "d", d)
		wantSealed(t, "e", e)
		wantRequests(t, w, "a", "[d e]")
		c.Close()
	})
}

// ending is a context that has ended and has not yet woken who waits for it.
type ending struct {
	context.Context
	ended atomic.Bool
	done  chan struct{}
}

func (e *ending) Deadline() (time.Time, bool) { return time.Now().Add(time.Hour), true }
func (e *ending) Done() <-chan struct{}       { return e.done }

func (e *ending) Err() error {
	if e.ended.Load() {
		return context.Canceled
	}
	return nil
}

// TestCoalescerEnding: who is about to leave the queue is not sent either.
func TestCoalescerEnding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		c := coalescer(t, w, client.CoalescerConfig{}, client.Retry{})
		start(t.Context(), c, "a")
		ctx := &ending{Context: t.Context(), done: make(chan struct{})}
		b := start(ctx, c, "b")
		start(t.Context(), c, "d")
		start(t.Context(), c, "e")
		ctx.ended.Store(true)
		w.goAll()
		wantRequests(t, w, "a", "[d e]")
		close(ctx.done)
		<-b.done
		if status.Code(b.err) != codes.Canceled {
			t.Errorf("%v, want CANCELED", b.err)
		}
		c.Close()
	})
}

// TestCoalescerLeavesBatch: who leaves a batch returns at once; the batch goes
// on for the others, and not for nobody.
func TestCoalescerLeavesBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		c := coalescer(t, w, client.CoalescerConfig{}, client.Retry{})
		start(t.Context(), c, "a")
		ctx, cancel := context.WithCancel(t.Context())
		request := &keyholdv1.EncryptRequest{KeyId: "k", Plaintext: []byte("b")}
		var err error
		var wg sync.WaitGroup
		wg.Go(func() { _, err = c.Encrypt(ctx, request) })
		synctest.Wait()
		d := start(t.Context(), c, "d")
		w.go1()
		wantRequests(t, w, "a", "[b d]")
		cancel()
		wg.Wait()
		if status.Code(err) != codes.Canceled {
			t.Errorf("who left: %v, want CANCELED", err)
		}
		clear(request.Plaintext) // it is the caller's again
		if d.returned() || w.cancelled != 0 {
			t.Error("the batch ended with the one who left")
		}
		w.go1()
		wantSealed(t, "d", d)
		if got := w.answers[0].GetResults()[0].GetEncrypt().GetCiphertextBlob(); string(got) != "sealed b" {
			t.Errorf("the batch had %q", got)
		}

		start(t.Context(), c, "e")
		ctx, cancel = context.WithCancel(t.Context())
		start(ctx, c, "f")
		start(ctx, c, "g")
		w.go1()
		wantRequests(t, w, "a", "[b d]", "e", "[f g]")
		cancel()
		synctest.Wait()
		if w.cancelled != 1 {
			t.Errorf("%d requests were cancelled, want the batch that nobody waits for", w.cancelled)
		}
		c.Close()
	})
}

// TestCoalescerWipes: an answer that nobody waits for any more is wiped.
func TestCoalescerWipes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		c := coalescer(t, w, client.CoalescerConfig{}, client.Retry{})
		start(t.Context(), c, "a")
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := c.Decrypt(ctx, &keyholdv1.DecryptRequest{CiphertextBlob: []byte("secret")}); err == nil {
				t.Error("who left has an answer")
			}
		})
		synctest.Wait()
		start(t.Context(), c, "b")
		w.go1()
		synctest.Wait()
		cancel()
		wg.Wait()
		w.goAll()
		c.Close()
		if got := w.answers[0].GetResults()[0].GetDecrypt().GetPlaintext(); !bytes.Equal(got, make([]byte, 6)) {
			t.Errorf("the answer that nobody took is %q", got)
		}
	})
}

// TestCoalescerDeadline: a batch has the latest deadline, and the default
// where a call has none.
func TestCoalescerDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		c := coalescer(t, w, client.CoalescerConfig{}, client.Retry{})
		begun := time.Now()
		start(t.Context(), c, "a")
		for _, d := range []time.Duration{10 * time.Minute, time.Hour, time.Minute} {
			ctx, cancel := context.WithTimeout(t.Context(), d)
			t.Cleanup(cancel)
			start(ctx, c, d.String())
		}
		w.go1()
		synctest.Wait()
		start(t.Context(), c, "d")
		start(t.Context(), c, "e")
		w.goAll()
		c.Close()
		want := []time.Time{begun.Add(30 * time.Second), begun.Add(time.Hour), begun.Add(30 * time.Second)}
		if diff := cmp.Diff(want, w.deadlines); diff != "" {
			t.Errorf("deadlines (-want +got):\n%s", diff)
		}
	})
}

func TestCoalescerQueueBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		c := coalescer(t, w, client.CoalescerConfig{MaxWaiting: 2}, client.Retry{})
		start(t.Context(), c, "a")
		ctx, cancel := context.WithCancel(t.Context())
		start(ctx, c, "b")
		d := start(t.Context(), c, "d")
		if e := start(t.Context(), c, "e"); !e.returned() || status.Code(e.err) != codes.ResourceExhausted {
			t.Errorf("one too many: returned %t, %v, want RESOURCE_EXHAUSTED", e.returned(), e.err)
		}
		cancel()
		synctest.Wait()
		f := start(t.Context(), c, "f") // there is room again
		w.goAll()
		wantSealed(t, "d", d)
		wantSealed(t, "f", f)
		c.Close()
	})
}

func TestCoalescerClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		c := coalescer(t, w, client.CoalescerConfig{}, client.Retry{})
		a, b, d := start(t.Context(), c, "a"), start(t.Context(), c, "b"), start(t.Context(), c, "d")
		closed := make(chan struct{})
		go func() {
			c.Close()
			close(closed)
		}()
		synctest.Wait()
		select {
		case <-closed:
			t.Error("Close did not wait")
		default:
		}
		if e := start(t.Context(), c, "e"); status.Code(e.err) != codes.Canceled {
			t.Errorf("after Close: %v, want CANCELED", e.err)
		}
		w.goAll()
		<-closed
		for text, k := range map[string]*calling{"a": a, "b": b, "d": d} {
			wantSealed(t, text, k)
		}
	})
}

// TestCoalescerStalled: a request that hangs does not keep all others waiting.
func TestCoalescerStalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		c := coalescer(t, w, client.CoalescerConfig{}, client.Retry{})
		start(t.Context(), c, "a")
		start(t.Context(), c, "b")
		start(t.Context(), c, "d")
		time.Sleep(time.Second - 1)
		wantRequests(t, w, "a")
		time.Sleep(time.Nanosecond)
		wantRequests(t, w, "a", "[b d]")
		start(t.Context(), c, "e")
		time.Sleep(time.Second)
		wantRequests(t, w, "a", "[b d]", "e")
		w.goAll()
		c.Close()
	})
}

// TestCoalescerStalledLater: so too where the queue was empty in between, and what
// it waited for then has ended.
func TestCoalescerStalledLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		c := coalescer(t, w, client.CoalescerConfig{}, client.Retry{})
		start(t.Context(), c, "a")
		start(t.Context(), c, "b")
		time.Sleep(500 * time.Millisecond)
		w.go1()
		wantRequests(t, w, "a", "b")
		start(t.Context(), c, "d")
		start(t.Context(), c, "e")
		time.Sleep(time.Second - 1)
		wantRequests(t, w, "a", "b")
		time.Sleep(time.Nanosecond)
		wantRequests(t, w, "a", "b", "[d e]")
		w.goAll()
		c.Close()
	})
}

// TestCoalescerDirect: what cannot ride with others is sent as it is.
func TestCoalescerDirect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		c := coalescer(t, w, client.CoalescerConfig{}, client.Retry{})
		start(t.Context(), c, "a")
		go func() {
			var header metadata.MD
			_, _ = c.Encrypt(t.Context(), &keyholdv1.EncryptRequest{Plaintext: []byte("options")}, grpc.Header(&header))
		}()
		wantRequests(t, w, "a", "options")
		_, err := c.Encrypt(t.Context(), &keyholdv1.EncryptRequest{KeyId: "\xff"})
		if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "UTF-8") {
			t.Errorf("a message that cannot be sent: %v, want what gRPC says", err)
		}
		w.goAll()
		c.Close()
	})
}

func TestNewCoalescerRefuses(t *testing.T) {
	for _, cfg := range []client.CoalescerConfig{{MaxInFlight: -1}, {MaxInFlight: 65}, {MaxWaiting: -1}, {MaxWaiting: 1<<20 + 1}} {
		if _, err := client.NewCoalescer(dialReal(t), cfg); err == nil {
			t.Errorf("NewCoalescer takes %+v", cfg)
		}
	}
	if _, err := client.NewCoalescer(&client.Client{}, client.CoalescerConfig{}); err == nil {
		t.Error("NewCoalescer takes a client that was not dialled")
	}
}
