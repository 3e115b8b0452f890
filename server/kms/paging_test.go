package kms_test

import (
	"encoding/base64"
	"fmt"
	"slices"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/kms"
)

// listKeys pages through all keys.
func (w *world) listKeys(limit *int32) (ids []string, pages int) {
	w.t.Helper()
	req := &keyholdv1.ListKeysRequest{Limit: limit}
	for {
		resp := do[*keyholdv1.ListKeysResponse](w, req)
		pages++
		most := 100
		if limit != nil {
			most = int(*limit)
		}
		if len(resp.GetKeys()) > most || resp.Truncated == nil || resp.GetTruncated() != (resp.GetNextMarker() != "") || resp.GetTruncated() && len(resp.GetKeys()) != most {
			w.t.Fatalf("a page of %d keys, truncated %v, marker %q", len(resp.GetKeys()), resp.GetTruncated(), resp.GetNextMarker())
		}
		for _, k := range resp.GetKeys() {
			if k.GetKeyArn() != arnOfTest+"key/"+k.GetKeyId() {
				w.t.Errorf("%s has the ARN %s", k.GetKeyId(), k.GetKeyArn())
			}
			ids = append(ids, k.GetKeyId())
		}
		if !resp.GetTruncated() {
			return ids, pages
		}
		req = &keyholdv1.ListKeysRequest{Limit: limit, Marker: ptr(resp.GetNextMarker())}
	}
}

func (w *world) listAliases(key *string, limit *int32) (names []string, pages int) {
	w.t.Helper()
	entries, pages := w.listAliasEntries(key, limit)
	for _, a := range entries {
		names = append(names, a.GetAliasName())
	}
	return names, pages
}

// listAliasEntries pages through all aliases.
func (w *world) listAliasEntries(key *string, limit *int32) (entries []*keyholdv1.AliasListEntry, pages int) {
	w.t.Helper()
	req := &keyholdv1.ListAliasesRequest{KeyId: key, Limit: limit}
	for {
		resp := do[*keyholdv1.ListAliasesResponse](w, req)
		pages++
		if resp.Truncated == nil || resp.GetTruncated() != (resp.GetNextMarker() != "") {
			w.t.Fatalf("truncated %v, marker %q", resp.GetTruncated(), resp.GetNextMarker())
		}
		entries = append(entries, resp.GetAliases()...)
		if !resp.GetTruncated() {
			return entries, pages
		}
		req = &keyholdv1.ListAliasesRequest{KeyId: key, Limit: limit, Marker: ptr(resp.GetNextMarker())}
	}
}

func TestPaging(t *testing.T) {
	t.Parallel()
	w, _ := newFakeWorld(t)
	if ids, pages := w.listKeys(nil); len(ids) != 0 || pages != 1 {
		t.Errorf("an empty list has %d keys in %d pages", len(ids), pages)
	}
	var want []string
	for range 101 {
		want = append(want, w.newAESKey())
	}
	slices.Sort(want)
	for _, c := range []struct {
		limit *int32
		pages int
	}{{nil, 2}, {ptr(int32(1)), 101}, {ptr(int32(7)), 15}, {ptr(int32(100)), 2}, {ptr(int32(101)), 1}, {ptr(int32(1000)), 1}} {
		if got, pages := w.listKeys(c.limit); !slices.Equal(got, want) || pages != c.pages {
			t.Errorf("%d keys in %d pages, want 101 in %d", len(got), pages, c.pages)
		}
	}
	var names []string
	for i := range 51 {
		name := fmt.Sprintf("alias/%03d", i)
		names = append(names, name)
		w.createAlias(name, want[i/30])
	}
	for _, c := range []struct {
		limit *int32
		pages int
	}{{nil, 2}, {ptr(int32(1)), 51}, {ptr(int32(50)), 2}, {ptr(int32(51)), 1}} {
		if got, pages := w.listAliases(nil, c.limit); !slices.Equal(got, names) || pages != c.pages {
			t.Errorf("%d aliases in %d pages, want 51 in %d", len(got), pages, c.pages)
		}
	}
	if got, pages := w.listAliases(&want[0], ptr(int32(29))); !slices.Equal(got, names[:30]) || pages != 2 {
		t.Errorf("%d aliases of the first key in %d pages", len(got), pages)
	}
	if got, _ := w.listAliases(&want[2], nil); len(got) != 0 {
		t.Errorf("a key without aliases has %v", got)
	}
	w.refuseMarkers()
	// Others see nothing of it.
	resp, err := tryAs[*keyholdv1.ListAliasesResponse](w, mallory(), &keyholdv1.ListAliasesRequest{})
	if err != nil || len(resp.GetAliases()) != 0 {
		t.Errorf("another account lists %v, %v", resp, err)
	}
}

// refuseMarkers: a marker of the other list, of nobody, or bent.
func (w *world) refuseMarkers() {
	w.t.Helper()
	keys := do[*keyholdv1.ListKeysResponse](w, &keyholdv1.ListKeysRequest{Limit: ptr(int32(1))}).GetNextMarker()
	aliases := do[*keyholdv1.ListAliasesResponse](w, &keyholdv1.ListAliasesRequest{Limit: ptr(int32(1))}).GetNextMarker()
	bent := []string{"x", keys + "=", keys + " ", " " + keys, keys[1:], base64.StdEncoding.EncodeToString([]byte("keys:")), "../../etc/passwd", "\u00ff"}
	for _, m := range append(bent, aliases) {
		refuse(w, &keyholdv1.ListKeysRequest{Marker: &m}, kms.CodeInvalidMarker)
	}
	for _, m := range append(bent, keys) {
		refuse(w, &keyholdv1.ListAliasesRequest{Marker: &m}, kms.CodeInvalidMarker)
	}
	// Characters that no marker has are AWS's ValidationException.
	for _, m := range []string{keys + "\n", "\x00", "\u0100"} {
		refuse(w, &keyholdv1.ListKeysRequest{Marker: &m}, kms.CodeValidation)
		refuse(w, &keyholdv1.ListAliasesRequest{Marker: &m}, kms.CodeValidation)
	}
}

// What was there before the first page is listed once, whatever comes and goes
// meanwhile.
func TestPagingWhileKeysAreMade(t *testing.T) {
	t.Parallel()
	w, _ := newFakeWorld(t)
	key := w.newAESKey()
	want := []string{key}
	for i := range 20 {
		want = append(want, w.newAESKey())
		w.createAlias(fmt.Sprintf("alias/old-%02d", i), key)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for worker := range 3 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				id, err := try[*keyholdv1.CreateKeyResponse](w, &keyholdv1.CreateKeyRequest{})
				if err != nil {
					t.Error(describe(err))
					return
				}
				name := fmt.Sprintf("alias/new-%d-%d", worker, i)
				for _, req := range []proto.Message{
					&keyholdv1.CreateAliasRequest{AliasName: name, TargetKeyId: id.GetKeyMetadata().GetKeyId()}, &keyholdv1.DeleteAliasRequest{AliasName: name},
				} {
					if _, err := try[proto.Message](w, req); err != nil {
						t.Error(describe(err))
					}
				}
			}
		})
	}
	for range 20 {
		got, _ := w.listKeys(ptr(int32(3)))
		if !slices.IsSorted(got) || len(slices.Compact(slices.Clone(got))) != len(got) {
			t.Error("a key is listed twice, or out of order")
		}
		for _, id := range want {
			if !slices.Contains(got, id) {
				t.Errorf("%s is not listed", id)
			}
		}
		names, _ := w.listAliases(nil, ptr(int32(3)))
		old := slices.DeleteFunc(names, func(n string) bool { return n[:10] == "alias/new-" })
		if len(old) != 20 || !slices.IsSorted(old) {
			t.Errorf("old aliases listed: %v", old)
		}
	}
	close(stop)
	wg.Wait()
	w.checkCoherence()
}

// 64 at once change one key: every answer is right, and in the end memory and
// store say the same.
func TestConcurrentChanges(t *testing.T) {
	t.Parallel()
	w, _ := newFakeWorld(t)
	id := w.newAESKey()
	blob := w.encrypt(id, []byte("x"), nil)
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			for j := range 5 {
				var req proto.Message
				switch (i + j) % 6 {
				case 0:
					req = &keyholdv1.EnableKeyRequest{KeyId: id}
				case 1:
					req = &keyholdv1.DisableKeyRequest{KeyId: id}
				case 2:
					req = &keyholdv1.DescribeKeyRequest{KeyId: id}
				case 3:
					req = &keyholdv1.UpdateKeyDescriptionRequest{KeyId: id, Description: ptr(fmt.Sprint(i, j))}
				case 4:
					req = &keyholdv1.EncryptRequest{KeyId: id, Plaintext: []byte("x")}
				case 5:
					req = &keyholdv1.DecryptRequest{CiphertextBlob: blob}
				}
				if _, err := try[proto.Message](w, req); err != nil && err.Code != kms.CodeDisabled {
					t.Errorf("%s: %s", operationOf(req), describe(err))
				}
			}
		})
	}
	wg.Wait()
	w.checkCoherence()
	stored, err := w.db.Key(t.Context(), kms.KeyID(id))
	if err != nil || stored.Revision < 2+64*5/6*3 {
		t.Errorf("the record stands at revision %d, %v: changes were lost", stored.Revision, err)
	}
}

// Somebody else changed the record in the store: the change is read, and the
// operation goes on or is refused by what is there now.
func TestConflicts(t *testing.T) {
	t.Parallel()
	w, _ := newFakeWorld(t)
	id := w.newAESKey()
	behind := func(change func(r *kms.KeyRecord)) {
		r, err := w.db.Key(t.Context(), kms.KeyID(id))
		if err != nil {
			t.Fatal(err)
		}
		change(r)
		if err := w.db.UpdateKey(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	behind(func(r *kms.KeyRecord) { r.Description = "from outside" })
	do[proto.Message](w, &keyholdv1.DisableKeyRequest{KeyId: id})
	if m := w.metadata(id); m.GetDescription() != "from outside" || m.GetKeyState() != disabled {
		t.Errorf("the key shows %v", m)
	}
	behind(func(r *kms.KeyRecord) {
		r.State, r.PendingWindowDays, r.DeletionDate = pending, 7, w.clock.Now().Add(1000)
	})
	refuse(w, &keyholdv1.EnableKeyRequest{KeyId: id}, kms.CodeInvalidState)
	w.checkCoherence()
}
