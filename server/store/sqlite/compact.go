package sqlite

import (
	"strings"
	"unique"

	"github.com/keyhold/keyhold/server/kms"
)

// A hundred thousand keys stay in memory as long as the process lives, and the
// garbage collector looks at every object of theirs again and again. What is read in
// one go is therefore put together: records by the chunk, and their strings too. A
// chunk is freed when nothing in it is in use, so that a chunk is small.
const (
	chunkRecords = 64
	chunkBytes   = 8 << 10
)

// compact is where what a load reads is put. The zero value puts nothing together:
// a record that is read alone lives and dies alone.
type compact struct {
	many     bool
	keys     []kms.KeyRecord
	versions []kms.KeyVersion
	aliases  []kms.AliasRecord
	text     strings.Builder
}

func (c *compact) key() *kms.KeyRecord { return &take(c.many, &c.keys)[0] }

func (c *compact) alias() *kms.AliasRecord { return &take(c.many, &c.aliases)[0] }

// version appends one to a key's versions. Nearly all keys have one.
func (c *compact) version(to []kms.KeyVersion, v kms.KeyVersion) []kms.KeyVersion {
	if len(to) > 0 {
		return append(to, v)
	}
	one := take(c.many, &c.versions)
	one[0] = v
	return one
}

// string returns s, in the memory of its chunk.
func (c *compact) string(s string) string {
	if !c.many || len(s) == 0 || len(s) > chunkBytes/8 {
		return s
	}
	if c.text.Cap()-c.text.Len() < len(s) {
		c.text.Reset() // leaves what was written to those who have it
		c.text.Grow(chunkBytes)
	}
	at := c.text.Len()
	c.text.WriteString(s) // within its capacity: what was written is not moved
	return c.text.String()[at:]
}

// take returns one new T, of a chunk if there will be many.
func take[T any](many bool, chunk *[]T) []T {
	if !many {
		return make([]T, 1)
	}
	if len(*chunk) == 0 {
		*chunk = make([]T, chunkRecords)
	}
	one := (*chunk)[:1:1] // what is appended to it does not go where the next one is
	*chunk = (*chunk)[1:]
	return one
}

// once returns the one copy of a string that many records have alike.
func once(s string) string { return unique.Make(s).Value() }
