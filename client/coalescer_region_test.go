package client_test

import (
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/metadata"

	"github.com/keyhold/keyhold/client"
)

func TestCoalescerRegions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		c := coalescer(t, w, client.CoalescerConfig{}, client.Retry{})
		east := metadata.AppendToOutgoingContext(t.Context(), client.RegionHeader, "east")
		west := metadata.AppendToOutgoingContext(t.Context(), client.RegionHeader, "west")
		start(east, c, "a")
		start(west, c, "b") // does not wait for the other region's
		for _, text := range []string{"c", "d"} {
			start(east, c, text)
			start(west, c, "w"+text)
		}
		w.go1()
		w.go1()
		synctest.Wait()
		w.goAll()
		c.Close()
		got := map[string][]string{}
		for i, r := range w.sent {
			got[r] = w.metadata[i].Get(client.RegionHeader)
		}
		want := map[string][]string{"a": {"east"}, "b": {"west"}, "[c d]": {"east"}, "[wc wd]": {"west"}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("requests and their regions (-want +got):\n%s", diff)
		}
	})
}

// TestCoalescerMetadata: what else is in the metadata may say who calls, so such
// a call is sent as it is.
func TestCoalescerMetadata(t *testing.T) {
	for name, pairs := range map[string][]string{
		"authorization":            {"Authorization", "Bearer b"},
		"region and authorization": {client.RegionHeader, "east", "authorization", "Bearer b"},
		"two regions":              {client.RegionHeader, "east", client.RegionHeader, "west"},
		"an empty region":          {client.RegionHeader, ""},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWire()
			c := coalescer(t, w, client.CoalescerConfig{}, client.Retry{})
			start(t.Context(), c, "a")
			start(t.Context(), c, "b")
			start(metadata.AppendToOutgoingContext(t.Context(), pairs...), c, "own")
			start(t.Context(), c, "c")
			wantRequests(t, w, "a", "own")
			want := metadata.Pairs(pairs...)
			if diff := cmp.Diff(want, w.metadata[1]); diff != "" {
				t.Errorf("%s: metadata (-want +got):\n%s", name, diff)
			}
			w.goAll()
			c.Close()
			wantRequests(t, w, "a", "own", "[b c]")
			if got := w.metadata[2]; len(got) != 0 {
				t.Errorf("%s: the batch has the metadata %v", name, got)
			}
		})
	}
}

// TestCoalescerManyRegions: a context can name whatever region it likes; few of
// them are remembered.
func TestCoalescerManyRegions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		w.goAll()
		c := coalescer(t, w, client.CoalescerConfig{}, client.Retry{})
		for i := range 100 {
			region := metadata.AppendToOutgoingContext(t.Context(), client.RegionHeader, strings.Repeat("x", i+1))
			wantSealed(t, "a", start(region, c, "a"))
		}
		if n := c.Lanes(); n > 16 {
			t.Errorf("%d regions are remembered", n)
		}
		c.Close()
		if n := c.Lanes(); n != 0 {
			t.Errorf("%d regions are remembered by a closed one", n)
		}
	})
}
