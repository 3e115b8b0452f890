package kms

import (
	"fmt"
	"testing"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// ringOf returns a keyring of n keys with an alias each, read in no order.
func ringOf(n int) *keyring {
	s := &Snapshot{}
	for i := range n {
		j := (i * 7919) % n // a prime: each number once
		id := KeyID(fmt.Sprintf("%06d", j))
		s.Keys = append(s.Keys, &KeyRecord{ID: id, Account: "111122223333", Region: "eu-west-1", State: keyholdv1.KeyState_KEY_STATE_ENABLED, Revision: 1})
		s.Aliases = append(s.Aliases, &AliasRecord{Account: "111122223333", Region: "eu-west-1", KeyID: id, Name: fmt.Sprintf("alias/%06d", j), Revision: 1})
	}
	return newKeyring(s)
}

// TestPagesOfManyKeys: pages of 100,000 keys and aliases have each of them once, in
// order.
func TestPagesOfManyKeys(t *testing.T) {
	t.Parallel()
	const many, limit = 100_000, 100
	ring := ringOf(many)
	var after KeyID
	var name string
	for first := 0; first < many; first += limit {
		ids, moreKeys := ring.listKeys("111122223333", "eu-west-1", after, limit)
		aliases, moreAliases := ring.listAliases("111122223333", "eu-west-1", "", name, limit)
		last := first+limit == many
		if len(ids) != limit || len(aliases) != limit || moreKeys == last || moreAliases == last {
			t.Fatalf("from %d: %d keys, more: %t; %d aliases, more: %t", first, len(ids), moreKeys, len(aliases), moreAliases)
		}
		for i := range limit {
			if want := fmt.Sprintf("%06d", first+i); string(ids[i]) != want || aliases[i].Name != "alias/"+want {
				t.Fatalf("%s and %s are listed in place of %s", ids[i], aliases[i].Name, want)
			}
		}
		after, name = ids[limit-1], aliases[limit-1].Name
	}
	if aliases, more := ring.listAliases("111122223333", "eu-west-1", "099999", "", limit); len(aliases) != 1 || more {
		t.Errorf("one key's aliases: %d, more: %t", len(aliases), more)
	}
}

// TestPageDoesNotScan: wherever a page is, its beginning is found by looking at as
// many entries as halving the list takes.
func TestPageDoesNotScan(t *testing.T) {
	t.Parallel()
	const many, limit, halvings = 100_000, 100, 17
	list := make([]int, many)
	for i := range list {
		list[i] = i
	}
	for _, first := range []int{0, 1, many / 2, many - limit, many - 1, many} {
		looks := 0
		got, more := page(list, limit, func(i int) bool {
			looks++
			return i >= first
		})
		if want := min(limit, many-first); len(got) != want || want > 0 && got[0] != first || more != (first+limit < many) {
			t.Errorf("from %d: %d entries, more: %t", first, len(got), more)
		}
		if looks > halvings {
			t.Errorf("from %d: %d of %d entries were looked at", first, looks, many)
		}
	}
}

// The aliases of a key are listed and counted in its own account and region alone.
func TestAliasesOfOneScope(t *testing.T) {
	k := &KeyRecord{ID: "00000000-0000-4000-8000-000000000001", Account: "111122223333", Region: "eu-central-1", State: keyholdv1.KeyState_KEY_STATE_ENABLED, Revision: 1}
	a := &AliasRecord{Account: k.Account, Region: k.Region, Name: "alias/b", KeyID: k.ID, Revision: 1}
	ring := newKeyring(&Snapshot{Keys: []*KeyRecord{k}, Aliases: []*AliasRecord{a}})
	ring.putAlias(&AliasRecord{Account: k.Account, Region: k.Region, Name: "alias/a", KeyID: k.ID, Revision: 1})
	for _, tc := range []struct {
		account AccountID
		region  Region
		want    int
	}{{k.Account, k.Region, 2}, {"444455556666", k.Region, 0}, {k.Account, "us-east-1", 0}} {
		ring.putAlias(&AliasRecord{Account: tc.account, Region: tc.region, Name: "alias/of-no-key", KeyID: "none", Revision: 1})
		got, more := ring.listAliases(tc.account, tc.region, k.ID, "", 10)
		if len(got) != tc.want || more {
			t.Errorf("%s %s: %d aliases, more: %t; want %d", tc.account, tc.region, len(got), more, tc.want)
		}
		if _, n := ring.counts(tc.account, tc.region, k.ID); tc.want > 0 && n != tc.want {
			t.Errorf("%s %s: %d aliases are counted, want %d", tc.account, tc.region, n, tc.want)
		}
	}
	ring.remove(k)
	if got, _ := ring.listAliases(k.Account, k.Region, k.ID, "", 10); len(got) != 0 || ring.alias(k.Account, k.Region, "alias/a") != nil {
		t.Errorf("a key that is gone has aliases: %v", got)
	}
}
