package pubkey

import "crypto"

// An Algorithm is a signature algorithm, by the names of AWS KMS's
// SigningAlgorithmSpec.
type Algorithm uint8

// The algorithms. ED25519_SHA_512 signs the message itself (RFC 8032, Ed25519);
// ED25519_PH_SHA_512 signs its SHA-512 digest (Ed25519ph, empty context).
const (
	RSAPKCS1SHA256 Algorithm = iota + 1
	RSAPKCS1SHA384
	RSAPKCS1SHA512
	RSAPSSSHA256
	RSAPSSSHA384
	RSAPSSSHA512
	ECDSASHA256
	ECDSASHA384
	ECDSASHA512
	Ed25519SHA512
	Ed25519phSHA512
	algorithmEnd // one past the last
)

var algorithms = [algorithmEnd]struct {
	name string
	hash crypto.Hash
}{
	RSAPKCS1SHA256:  {"RSASSA_PKCS1_V1_5_SHA_256", crypto.SHA256},
	RSAPKCS1SHA384:  {"RSASSA_PKCS1_V1_5_SHA_384", crypto.SHA384},
	RSAPKCS1SHA512:  {"RSASSA_PKCS1_V1_5_SHA_512", crypto.SHA512},
	RSAPSSSHA256:    {"RSASSA_PSS_SHA_256", crypto.SHA256},
	RSAPSSSHA384:    {"RSASSA_PSS_SHA_384", crypto.SHA384},
	RSAPSSSHA512:    {"RSASSA_PSS_SHA_512", crypto.SHA512},
	ECDSASHA256:     {"ECDSA_SHA_256", crypto.SHA256},
	ECDSASHA384:     {"ECDSA_SHA_384", crypto.SHA384},
	ECDSASHA512:     {"ECDSA_SHA_512", crypto.SHA512},
	Ed25519SHA512:   {"ED25519_SHA_512", 0},
	Ed25519phSHA512: {"ED25519_PH_SHA_512", crypto.SHA512},
}

// Algorithms returns all algorithms, in a fixed order.
func Algorithms() []Algorithm {
	all := make([]Algorithm, 0, algorithmEnd-1)
	for a := RSAPKCS1SHA256; a < algorithmEnd; a++ {
		all = append(all, a)
	}
	return all
}

// String returns AWS's name of the algorithm.
func (a Algorithm) String() string {
	if a == 0 || a >= algorithmEnd {
		return "unknown"
	}
	return algorithms[a].name
}

// Hash returns the hash whose digest is the algorithm's input, 0 when the input
// is the message itself (Ed25519SHA512) or the algorithm is unknown.
func (a Algorithm) Hash() crypto.Hash {
	if a >= algorithmEnd {
		return 0
	}
	return algorithms[a].hash
}

// IsPSS reports whether the algorithm is RSASSA-PSS.
func (a Algorithm) IsPSS() bool { return a >= RSAPSSSHA256 && a <= RSAPSSSHA512 }

// IsPKCS1 reports whether the algorithm is RSASSA-PKCS1-v1_5.
func (a Algorithm) IsPKCS1() bool { return a >= RSAPKCS1SHA256 && a <= RSAPKCS1SHA512 }

// Fits reports whether keys of the kind sign by the algorithm, as AWS KMS pairs
// them: each curve has one hash.
func (a Algorithm) Fits(kind Kind) bool {
	switch kind {
	case RSA:
		return a.IsPKCS1() || a.IsPSS()
	case P256, Secp256k1:
		return a == ECDSASHA256
	case P384:
		return a == ECDSASHA384
	case P521:
		return a == ECDSASHA512
	case Ed25519:
		return a == Ed25519SHA512 || a == Ed25519phSHA512
	}
	return false
}
