package kms_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
	"github.com/keyhold/keyhold/server/kms"
)

func tagList(pairs ...string) []*keyholdv1.Tag {
	var out []*keyholdv1.Tag
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, &keyholdv1.Tag{TagKey: pairs[i], TagValue: &pairs[i+1]})
	}
	return out
}

// listTags returns a key's tags, key and value in turn, and the number of pages.
func (w *world) listTags(id string, limit *int32) (pairs []string, pages int) {
	w.t.Helper()
	req := &keyholdv1.ListResourceTagsRequest{KeyId: id, Limit: limit}
	for {
		resp := do[*keyholdv1.ListResourceTagsResponse](w, req)
		pages++
		for _, t := range resp.GetTags() {
			if t.TagValue == nil {
				w.t.Errorf("%s has no value at all", t.GetTagKey())
			}
			pairs = append(pairs, t.GetTagKey(), t.GetTagValue())
		}
		if resp.GetTruncated() != (resp.GetNextMarker() != "") || resp.Truncated == nil {
			w.t.Errorf("truncated %v, marker %q", resp.Truncated, resp.GetNextMarker())
		}
		if !resp.GetTruncated() {
			return pairs, pages
		}
		req.Marker = ptr(resp.GetNextMarker())
	}
}

func TestTags(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	made := do[*keyholdv1.CreateKeyResponse](w, &keyholdv1.CreateKeyRequest{Tags: tagList("b", "2", "a", "1")}).GetKeyMetadata()
	id := made.GetKeyId()
	want := func(pairs ...string) {
		t.Helper()
		if got, _ := w.listTags(id, nil); !slices.Equal(got, pairs) {
			t.Errorf("tags %q, want %q", got, pairs)
		}
	}
	want("a", "1", "b", "2")
	do[*keyholdv1.TagResourceResponse](w, &keyholdv1.TagResourceRequest{KeyId: made.GetArn(), Tags: tagList("b", "", "é +=.:/@_-", "3")})
	want("a", "1", "b", "", "é +=.:/@_-", "3")
	do[*keyholdv1.UntagResourceResponse](w, &keyholdv1.UntagResourceRequest{KeyId: id, TagKeys: []string{"a", "never there"}})
	want("b", "", "é +=.:/@_-", "3")
	if got, pages := w.listTags(id, ptr(int32(1))); len(got) != 4 || pages != 2 {
		t.Errorf("%q in %d pages", got, pages)
	}
	if stored, err := w.db.Key(t.Context(), kms.KeyID(id)); err != nil || len(stored.Tags) != 2 {
		t.Errorf("stored are %v, %v", stored, err)
	}
	// Nothing else about the key has changed.
	if d := cmp.Diff(made.String(), w.metadata(id).String()); d != "" {
		t.Error(d)
	}
}

func TestTagLimits(t *testing.T) {
	t.Parallel()
	w, _ := newFakeWorld(t)
	id := w.newAESKey()
	var fifty []string
	for i := range 50 {
		fifty = append(fifty, fmt.Sprintf("k%02d", i), "v")
	}
	tag := func(pairs ...string) proto.Message {
		return &keyholdv1.TagResourceRequest{KeyId: id, Tags: tagList(pairs...)}
	}
	untag := func(keys ...string) proto.Message {
		return &keyholdv1.UntagResourceRequest{KeyId: id, TagKeys: keys}
	}
	do[proto.Message](w, tag(fifty...))
	do[proto.Message](w, tag(append(fifty[:98:98], "k49", "new")...))
	refuse(w, tag("one more", ""), kms.CodeLimitExceeded)
	refuse(w, tag("k00", "x", "one more", ""), kms.CodeLimitExceeded)
	if got, _ := w.listTags(id, nil); len(got) != 100 || got[1] != "v" || got[99] != "new" {
		t.Errorf("a refused change has changed something: %q", got)
	}
	for what, c := range map[string]struct {
		req  proto.Message
		code kms.Code
	}{
		"51 at once":         {tag(append(fifty, "x", "")...), kms.CodeValidation},
		"none":               {tag(), kms.CodeValidation},
		"double":             {tag("a", "1", "a", "2"), kms.CodeTag},
		"reserved":           {tag("aWs:x", ""), kms.CodeTag},
		"characters":         {tag("a*", ""), kms.CodeTag},
		"value's characters": {tag("a", "\x00"), kms.CodeTag},
		"long key":           {tag(strings.Repeat("é", 129), ""), kms.CodeValidation},
		"long value":         {tag("a", strings.Repeat("é", 257)), kms.CodeValidation},
		"no key":             {tag("", ""), kms.CodeValidation},
		"no value":           {&keyholdv1.TagResourceRequest{KeyId: id, Tags: []*keyholdv1.Tag{{TagKey: "a"}}}, kms.CodeValidation},
		"untag none":         {untag(), kms.CodeValidation},
		"untag reserved":     {untag("aws:x"), kms.CodeTag},
		"untag characters":   {untag("a*"), kms.CodeTag},
		"untag long":         {untag(strings.Repeat("x", 129)), kms.CodeValidation},
		"untag 51":           {untag(slices.Repeat([]string{"x"}, 51)...), kms.CodeValidation},
		"limit 0":            {&keyholdv1.ListResourceTagsRequest{KeyId: id, Limit: ptr(int32(0))}, kms.CodeValidation},
		"limit 51":           {&keyholdv1.ListResourceTagsRequest{KeyId: id, Limit: ptr(int32(51))}, kms.CodeValidation},
		"marker":             {&keyholdv1.ListResourceTagsRequest{KeyId: id, Marker: ptr("x")}, kms.CodeInvalidMarker},
		"unknown key":        {&keyholdv1.TagResourceRequest{KeyId: unknownID, Tags: tagList("a", "")}, kms.CodeNotFound},
	} {
		t.Run(what, func(t *testing.T) { refuse(w.with(t), c.req, c.code) })
	}
	w.createAlias("alias/tagged", id)
	refuse(w, &keyholdv1.ListResourceTagsRequest{KeyId: "alias/tagged"}, kms.CodeNotFound)
	refuseAs(w, mallory(), &keyholdv1.ListResourceTagsRequest{KeyId: keyARNOf(w, id)}, kms.CodeAccessDenied)
	do[proto.Message](w, untag("k00"))
	do[proto.Message](w, tag(strings.Repeat("é", 128), strings.Repeat("é", 256))) // as long as may be
}

// Changes of one key's tags at the same time are all there afterwards.
func TestTagsAtOnce(t *testing.T) {
	t.Parallel()
	w, _ := newFakeWorld(t)
	id := w.newAESKey()
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if _, err := try[proto.Message](w, &keyholdv1.TagResourceRequest{KeyId: id, Tags: tagList(fmt.Sprint(i), "v")}); err != nil {
				t.Error(describe(err))
			}
		})
	}
	wg.Wait()
	if got, _ := w.listTags(id, ptr(int32(7))); len(got) != 40 {
		t.Errorf("%d tags, want 20: %q", len(got)/2, got)
	}
}

func TestKeyPolicies(t *testing.T) {
	t.Parallel()
	w, _ := newFakeWorld(t)
	id := w.newAESKey()
	got := do[*keyholdv1.GetKeyPolicyResponse](w, &keyholdv1.GetKeyPolicyRequest{KeyId: id, PolicyName: ptr("default")})
	var doc struct {
		Version, ID string
		Statement   []struct {
			Sid, Effect, Action, Resource string
			Principal                     map[string]string
		}
	}
	if err := json.Unmarshal([]byte(got.GetPolicy()), &doc); err != nil {
		t.Fatal(err)
	}
	if got.GetPolicyName() != "default" || doc.Version != "2012-10-17" || len(doc.Statement) != 1 || doc.Statement[0].Effect != "Allow" ||
		doc.Statement[0].Action != "kms:*" || doc.Statement[0].Resource != "*" || doc.Statement[0].Principal["AWS"] != "arn:aws:iam::"+testAccount+":root" {
		t.Errorf("%+v", got)
	}
	if again := do[*keyholdv1.GetKeyPolicyResponse](w, &keyholdv1.GetKeyPolicyRequest{KeyId: id}); !proto.Equal(again, got) {
		t.Errorf("without a name: %v", again)
	}
	refuse(w, &keyholdv1.GetKeyPolicyRequest{KeyId: id, PolicyName: ptr("other")}, kms.CodeNotFound)
	refuse(w, &keyholdv1.GetKeyPolicyRequest{KeyId: id, PolicyName: ptr("a-b")}, kms.CodeValidation)
	list := do[*keyholdv1.ListKeyPoliciesResponse](w, &keyholdv1.ListKeyPoliciesRequest{KeyId: id, Limit: ptr(int32(1000))})
	if !slices.Equal(list.GetPolicyNames(), []string{"default"}) || list.GetTruncated() || list.Truncated == nil || list.GetNextMarker() != "" {
		t.Errorf("%+v", list)
	}
	refuse(w, &keyholdv1.ListKeyPoliciesRequest{KeyId: id, Marker: ptr("x")}, kms.CodeValidation)
	refuse(w, &keyholdv1.ListKeyPoliciesRequest{KeyId: id, Limit: ptr(int32(1001))}, kms.CodeValidation)
	refuseAs(w, mallory(), &keyholdv1.GetKeyPolicyRequest{KeyId: keyARNOf(w, id)}, kms.CodeAccessDenied)
}

func keyARNOf(w *world, id string) string { return w.metadata(id).GetArn() }
