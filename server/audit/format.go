package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
	"time"
)

// The numbers of docs/audit-format.md. All integers are big-endian.
const (
	formatVersion = 1

	segmentHeaderBytes = 4096 // one block, so that records start aligned
	segmentHeaderUsed  = 84   // the rest of the block is zero

	recordHeaderBytes  = 40
	recordTrailerBytes = 36 // chain value, CRC-32C
	recordAlign        = 8

	// maxPayloadBytes is what the format allows; Options.MaxRecordBytes is what a
	// journal takes. It bounds what a reader allocates for a damaged length.
	maxPayloadBytes = 16 << 20

	headBytes = 76
)

var (
	segmentMagic = [8]byte{'K', 'H', 'A', 'U', 'D', 'I', 'T', 0x1a}
	headMagic    = [8]byte{'K', 'H', 'A', 'H', 'E', 'A', 'D', 0x1a}
	// recordMagic begins with a byte that no valid UTF-8 contains: text inside a
	// payload cannot imitate a record when a reader looks for one beyond damage.
	recordMagic = [4]byte{0xff, 'K', 'H', 'R'}

	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// Kind tells what a record is.
type Kind uint8

const (
	// KindEvent is a record that a caller appended.
	KindEvent Kind = 1
	// KindNote is a record that the journal wrote about itself, for instance that
	// it cut off a torn tail. Its payload is an event too, of type
	// AwsServiceEvent.
	KindNote Kind = 2
)

const flagProtected = 1 << 0 // appended with class Protected

// Hash is a SHA-256 value: a leaf or a value of the chain.
type Hash [sha256.Size]byte

// String returns lower-case hex.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// Anchor is a point in the journal: the chain value after its first Count
// records. Kept elsewhere, it later proves that those records are unchanged.
type Anchor struct {
	Count uint64 // records before this point; also the next sequence number
	Hash  Hash   // chain value h(Count-1); for Count 0 the genesis value
}

// String returns COUNT:HEX, which [ParseAnchor] reads.
func (a Anchor) String() string {
	return strconv.FormatUint(a.Count, 10) + ":" + a.Hash.String()
}

// ParseAnchor reads what [Anchor.String] writes.
func ParseAnchor(s string) (Anchor, error) {
	count, sum, ok := strings.Cut(s, ":")
	n, err := strconv.ParseUint(count, 10, 64)
	b, hexErr := hex.DecodeString(sum)
	if !ok || err != nil || hexErr != nil || len(b) != sha256.Size {
		return Anchor{}, fmt.Errorf("anchor %q is not COUNT:HASH with a decimal count and 64 hex digits", s)
	}
	return Anchor{Count: n, Hash: Hash(b)}, nil
}

// journalID is drawn once, when the journal is created.
type journalID [16]byte

// String returns lower-case hex.
func (id journalID) String() string { return hex.EncodeToString(id[:]) }

// genesis is the chain value before record 0.
func genesis(id journalID) Hash {
	return sha256.Sum256(append([]byte("keyhold/audit/journal/v1\x00"), id[:]...))
}

// chain returns h(i) = SHA-256(0x02 || h(i-1) || leaf(i)). The prefix keeps it
// apart from the leaf and node hashes of RFC 6962, section 2.1.
func chain(prev, leaf *Hash) Hash {
	var b [1 + 2*sha256.Size]byte
	b[0] = 2
	copy(b[1:], prev[:])
	copy(b[1+sha256.Size:], leaf[:])
	return sha256.Sum256(b[:])
}

// recordSize returns the bytes that a record with n bytes of payload takes.
func recordSize(n int) int {
	return (recordHeaderBytes + n + recordTrailerBytes + recordAlign - 1) &^ (recordAlign - 1)
}

// recordHeader is what precedes a payload.
type recordHeader struct {
	kind  Kind
	flags uint8
	seq   uint64
	nanos int64
	// floor is how many records were known durable when this one was written.
	// That a record exists proves that the records below its floor once were
	// whole: it tells damage from a torn tail.
	floor uint64
}

// appendRecord appends one whole record to dst and returns the chain value after
// it. dst must end on a multiple of recordAlign from the start of the segment.
func appendRecord(dst []byte, h recordHeader, payload []byte, prev *Hash) ([]byte, Hash) {
	start := len(dst)
	dst = append(dst, recordMagic[:]...)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(payload)))
	dst = append(dst, byte(h.kind), h.flags, 0, 0, 0, 0, 0, 0)
	dst = binary.BigEndian.AppendUint64(dst, h.seq)
	dst = binary.BigEndian.AppendUint64(dst, uint64(h.nanos))
	dst = binary.BigEndian.AppendUint64(dst, h.floor)
	dst = append(dst, payload...)
	leaf := Hash(sha256.Sum256(dst[start:]))
	sum := chain(prev, &leaf)
	dst = append(dst, sum[:]...)
	dst = binary.BigEndian.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
	var pad [recordAlign]byte
	return append(dst, pad[:start+recordSize(len(payload))-len(dst)]...), sum
}

// Why bytes are not a record. Only the first two can be the work of a crash.
var (
	errNoRecord  = errors.New("no record begins here")
	errBadSum    = errors.New("record checksum does not match")
	errBadFields = errors.New("record fields are not as the format says")
)

// payloadLength reads the length from the first bytes of a record header. ok is
// false if no record begins there.
func payloadLength(b []byte) (n int, ok bool) {
	if len(b) < recordHeaderBytes || !bytes.Equal(b[:4], recordMagic[:]) {
		return 0, false
	}
	l := binary.BigEndian.Uint32(b[4:])
	return int(l), l > 0 && l <= maxPayloadBytes
}

// parseRecord reads the record at the start of b, which may be followed by
// others. rec.Payload aliases b. It does not check the record's place in the chain;
// it sets Leaf and Chain to what the bytes say.
func parseRecord(b []byte, rec *Record) (size int, err error) {
	n, ok := payloadLength(b)
	if !ok {
		return 0, errNoRecord
	}
	size = recordSize(n)
	if len(b) < size {
		return 0, errNoRecord
	}
	end := recordHeaderBytes + n
	if binary.BigEndian.Uint32(b[end+sha256.Size:]) != crc32.Checksum(b[:end+sha256.Size], castagnoli) {
		return 0, errBadSum
	}
	kind, flags := Kind(b[8]), b[9]
	if (kind != KindEvent && kind != KindNote) || flags&^flagProtected != 0 ||
		!allZero(b[10:16]) || !allZero(b[end+recordTrailerBytes:size]) {
		return 0, errBadFields
	}
	rec.Kind = kind
	rec.Protected = flags&flagProtected != 0
	rec.Seq = binary.BigEndian.Uint64(b[16:])
	rec.Time = time.Unix(0, int64(binary.BigEndian.Uint64(b[24:]))).UTC()
	rec.floor = binary.BigEndian.Uint64(b[32:])
	rec.Payload = b[recordHeaderBytes:end:end]
	rec.Leaf = sha256.Sum256(b[:end])
	rec.Chain = Hash(b[end : end+sha256.Size])
	return size, nil
}

// segmentHeader is the first block of a segment.
type segmentHeader struct {
	id      journalID
	start   Anchor // first sequence number, and the chain value before it
	created time.Time
}

func (h *segmentHeader) encode() []byte {
	b := make([]byte, 0, segmentHeaderBytes)
	b = append(b, segmentMagic[:]...)
	b = binary.BigEndian.AppendUint32(b, formatVersion)
	b = binary.BigEndian.AppendUint32(b, segmentHeaderBytes)
	b = append(b, h.id[:]...)
	b = binary.BigEndian.AppendUint64(b, h.start.Count)
	b = binary.BigEndian.AppendUint64(b, uint64(h.created.UnixNano()))
	b = append(b, h.start.Hash[:]...)
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	return b[:segmentHeaderBytes] // make gave zeros
}

func parseSegmentHeader(b []byte) (segmentHeader, error) {
	var h segmentHeader
	if len(b) < segmentHeaderBytes {
		return h, fmt.Errorf("segment header has %d of %d bytes", len(b), segmentHeaderBytes)
	}
	b = b[:segmentHeaderBytes]
	if !bytes.Equal(b[:8], segmentMagic[:]) {
		return h, errors.New("not an audit segment (magic number)")
	}
	if crc32.Checksum(b[:80], castagnoli) != binary.BigEndian.Uint32(b[80:]) {
		return h, errors.New("segment header checksum does not match")
	}
	if v := binary.BigEndian.Uint32(b[8:]); v != formatVersion {
		return h, fmt.Errorf("segment format version %d, this program reads %d", v, formatVersion)
	}
	if n := binary.BigEndian.Uint32(b[12:]); n != segmentHeaderBytes || !allZero(b[segmentHeaderUsed:]) {
		return h, errors.New("segment header fields are not as the format says")
	}
	copy(h.id[:], b[16:])
	h.start.Count = binary.BigEndian.Uint64(b[32:])
	h.created = time.Unix(0, int64(binary.BigEndian.Uint64(b[40:]))).UTC()
	copy(h.start.Hash[:], b[48:])
	if h.start.Count == 0 && h.start.Hash != genesis(h.id) {
		return h, errors.New("segment header: chain does not start at the journal's genesis value")
	}
	return h, nil
}

// appendHead encodes the head file: the newest point known durable.
func appendHead(dst []byte, id journalID, at Anchor) []byte {
	start := len(dst)
	dst = append(dst, headMagic[:]...)
	dst = binary.BigEndian.AppendUint32(dst, formatVersion)
	dst = binary.BigEndian.AppendUint32(dst, 0)
	dst = append(dst, id[:]...)
	dst = binary.BigEndian.AppendUint64(dst, at.Count)
	dst = append(dst, at.Hash[:]...)
	return binary.BigEndian.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
}

func parseHead(b []byte) (id journalID, at Anchor, err error) {
	if len(b) != headBytes || !bytes.Equal(b[:8], headMagic[:]) ||
		binary.BigEndian.Uint32(b[headBytes-4:]) != crc32.Checksum(b[:headBytes-4], castagnoli) ||
		binary.BigEndian.Uint32(b[8:]) != formatVersion || !allZero(b[12:16]) {
		return id, at, errors.New("head file is not as the format says")
	}
	copy(id[:], b[16:])
	at.Count = binary.BigEndian.Uint64(b[32:])
	copy(at.Hash[:], b[40:])
	return id, at, nil
}

// zeros is never written to; it is what segments are filled and compared with.
var zeros [64 << 10]byte

func allZero(b []byte) bool {
	for len(b) > len(zeros) {
		if !bytes.Equal(b[:len(zeros)], zeros[:]) {
			return false
		}
		b = b[len(zeros):]
	}
	return bytes.Equal(b, zeros[:len(b)])
}
