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

// TestPagesOfManyKeys (not parallel: allocations are counted): pages of 100,000 keys and aliases have each of them once, in order, and a page costs what its entries cost, wherever it is
// and however many there are: what is allocated for one does not grow.
func TestPagesOfManyKeys(t *testing.T) {
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
	cost := func(r *keyring, after string) float64 {
		return testing.AllocsPerRun(100, func() {
			r.listKeys("111122223333", "eu-west-1", KeyID(after), limit)
			r.listAliases("111122223333", "eu-west-1", "", "alias/"+after, limit)
		})
	}
	want := cost(ringOf(2*limit), "000000")
	for _, after := range []string{"000000", "050000", "099899"} {
		if got := cost(ring, after); got != want {
			t.Errorf("a page behind %s of %d: %v allocations, of %d: %v", after, many, got, 2*limit, want)
		}
	}
}
