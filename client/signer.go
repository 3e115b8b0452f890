package client

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// PublicKeyService is what gives a Signer or a Decrypter its public half.
type PublicKeyService interface {
	// GetPublicKey returns the public key of an asymmetric KMS key.
	GetPublicKey(ctx context.Context, req *keyholdv1.GetPublicKeyRequest, opts ...grpc.CallOption) (*keyholdv1.GetPublicKeyResponse, error)
}

// SigningService is what a Signer calls: a Client's Crypto, or a Coalescer.
type SigningService interface {
	PublicKeyService

	// Sign signs a digest, or a short message.
	Sign(ctx context.Context, req *keyholdv1.SignRequest, opts ...grpc.CallOption) (*keyholdv1.SignResponse, error)
}

// CallOptions are what calls are made with where an interface of others, such as
// crypto.Signer, crypto.Decrypter or tink.AEAD, has no argument for it. The zero
// value will do.
type CallOptions struct {
	// BaseContext returns the context of the calls, which Go's interfaces do not
	// pass on: when it ends, calls fail. Optional: context.Background.
	BaseContext func() context.Context

	// Timeout is how long one call may take, with all its attempts. Optional:
	// the client's own.
	Timeout time.Duration
}

// Context returns the context of one call, which ends with cancel.
func (o CallOptions) Context() (context.Context, context.CancelFunc) {
	ctx := context.Background()
	if o.BaseContext != nil {
		ctx = o.BaseContext()
	}
	if o.Timeout > 0 {
		return context.WithTimeout(ctx, o.Timeout)
	}
	return ctx, func() {}
}

// inRegionOf makes a context name the region of a key's ARN, where the calls with
// it must go: the context of the call that fetched the key may have named it, and
// this one name another or none.
func inRegionOf(ctx context.Context, arn string) context.Context {
	const region = 3 // arn:aws:kms:REGION:account:key/id
	parts := strings.Split(arn, ":")
	if len(parts) <= region || parts[region] == "" {
		return ctx
	}
	md, _ := metadata.FromOutgoingContext(ctx)
	if md == nil {
		md = metadata.MD{}
	}
	md.Set(RegionHeader, parts[region])
	return metadata.NewOutgoingContext(ctx, md)
}

// maxRawBytes is the longest message that the service signs itself.
const maxRawBytes = 4096

// Signer is a crypto.Signer whose private key is in the HSM: for
// tls.Certificate, x509.CreateCertificate, x509.CreateCertificateRequest and
// whatever else takes one. It may be used concurrently.
type Signer struct {
	service SigningService
	arn     string
	public  crypto.PublicKey
	offered []keyholdv1.SigningAlgorithmSpec
	opts    CallOptions
}

var _ crypto.Signer = (*Signer)(nil)

// NewSigner fetches the public key of the KMS key, whose usage must be
// SIGN_VERIFY. It is the key that keyID names now: where an alias is pointed at
// another key later, the Signer stays with its own, and calls its region.
//
// RSA keys and those on P-256, P-384, P-521 and Ed25519 will do. Those on
// secp256k1 will not: Go's library knows no such keys. Call Sign for them.
func NewSigner(ctx context.Context, service SigningService, keyID string, opts CallOptions) (*Signer, error) {
	resp, public, err := fetchPublic(ctx, service, keyID, keyholdv1.KeyUsageType_KEY_USAGE_TYPE_SIGN_VERIFY)
	if err != nil {
		return nil, fmt.Errorf("signer for %s: %w", keyID, err)
	}
	return &Signer{service: service, arn: resp.GetKeyId(), public: public, offered: resp.GetSigningAlgorithms(), opts: opts}, nil
}

// fetchPublic returns the public key of a key with the usage.
func fetchPublic(ctx context.Context, service PublicKeyService, keyID string, usage keyholdv1.KeyUsageType) (*keyholdv1.GetPublicKeyResponse, crypto.PublicKey, error) {
	resp, err := service.GetPublicKey(ctx, &keyholdv1.GetPublicKeyRequest{KeyId: keyID})
	if err != nil {
		return nil, nil, err
	}
	if got := resp.GetKeyUsage(); got != usage {
		return nil, nil, fmt.Errorf("the key's usage is %v, and must be %v", got, usage)
	}
	if resp.GetKeySpec() == keyholdv1.KeySpec_KEY_SPEC_ECC_SECG_P256K1 {
		return nil, nil, errors.New("the key is on secp256k1, which Go's crypto packages do not know; call Sign itself")
	}
	public, err := x509.ParsePKIXPublicKey(resp.GetPublicKey())
	if err != nil {
		return nil, nil, fmt.Errorf("public key: %w", err)
	}
	return resp, public, nil
}

// Public returns an *rsa.PublicKey, an *ecdsa.PublicKey or an
// ed25519.PublicKey.
func (s *Signer) Public() crypto.PublicKey { return s.public }

// KeyID returns the ARN of the KMS key.
func (s *Signer) KeyID() string { return s.arn }

// Sign signs a digest that was made with opts' hash, or with Ed25519 and no
// hash, a message of up to 4,096 bytes. rand is not used: the HSM has its own.
//
// The hash must be SHA-256, SHA-384 or SHA-512; for ECDSA, the one of the
// curve: the service ties P-256 to SHA-256, and so on. RSA signs by PKCS #1
// v1.5, or by PSS where opts are *rsa.PSSOptions; its salt is as long as the
// hash, as rsa.PSSSaltLengthEqualsHash says and rsa.PSSSaltLengthAuto allows.
// Ed25519 with SHA-512 is Ed25519ph, which not every token can do.
func (s *Signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts == nil {
		return nil, errors.New("sign: opts must say the hash")
	}
	alg, err := s.algorithm(opts)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	req := &keyholdv1.SignRequest{KeyId: s.arn, Message: digest, MessageType: keyholdv1.MessageType_MESSAGE_TYPE_DIGEST, SigningAlgorithm: alg}
	switch hash := opts.HashFunc(); {
	case hash == 0 && len(digest) > maxRawBytes:
		return nil, fmt.Errorf("sign: the message has %d bytes; Ed25519 signs whole messages, and the service takes at most %d", len(digest), maxRawBytes)
	case hash == 0:
		req.MessageType = keyholdv1.MessageType_MESSAGE_TYPE_RAW
	case len(digest) != hash.Size():
		return nil, fmt.Errorf("sign: the digest has %d bytes; one of %v has %d", len(digest), hash, hash.Size())
	}
	ctx, cancel := s.opts.Context()
	defer cancel()
	resp, err := s.service.Sign(inRegionOf(ctx, s.arn), req)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return resp.GetSignature(), nil
}

// algorithm returns what opts ask for, if the service can do it with the key.
func (s *Signer) algorithm(opts crypto.SignerOpts) (keyholdv1.SigningAlgorithmSpec, error) {
	hash := opts.HashFunc()
	alg := keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_UNSPECIFIED
	switch s.public.(type) {
	case *rsa.PublicKey:
		alg = rsaPKCS1[hash]
		if pss, ok := opts.(*rsa.PSSOptions); ok {
			if n := pss.SaltLength; n != rsa.PSSSaltLengthAuto && n != rsa.PSSSaltLengthEqualsHash && (!hash.Available() || n != hash.Size()) {
				return 0, fmt.Errorf("a PSS salt of %d bytes; the service makes one as long as the hash", n)
			}
			alg = rsaPSS[hash]
		}
	case *ecdsa.PublicKey:
		alg = ecdsaHash[hash]
	case ed25519.PublicKey:
		if o, ok := opts.(*ed25519.Options); ok && o.Context != "" {
			return 0, errors.New("Ed25519 with a context; the service has none")
		}
		alg = ed25519Hash[hash]
	}
	if alg == keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_UNSPECIFIED || !slices.Contains(s.offered, alg) {
		return 0, fmt.Errorf("the key does not sign with hash %v; the service offers %v", hash, s.offered)
	}
	return alg, nil
}

// The algorithms of each kind of key, by hash. They are never changed.
var (
	rsaPKCS1 = map[crypto.Hash]keyholdv1.SigningAlgorithmSpec{
		crypto.SHA256: keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_RSASSA_PKCS1_V1_5_SHA_256,
		crypto.SHA384: keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_RSASSA_PKCS1_V1_5_SHA_384,
		crypto.SHA512: keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_RSASSA_PKCS1_V1_5_SHA_512,
	}
	rsaPSS = map[crypto.Hash]keyholdv1.SigningAlgorithmSpec{
		crypto.SHA256: keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_RSASSA_PSS_SHA_256,
		crypto.SHA384: keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_RSASSA_PSS_SHA_384,
		crypto.SHA512: keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_RSASSA_PSS_SHA_512,
	}
	ecdsaHash = map[crypto.Hash]keyholdv1.SigningAlgorithmSpec{
		crypto.SHA256: keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_ECDSA_SHA_256,
		crypto.SHA384: keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_ECDSA_SHA_384,
		crypto.SHA512: keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_ECDSA_SHA_512,
	}
	ed25519Hash = map[crypto.Hash]keyholdv1.SigningAlgorithmSpec{
		0:             keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_ED25519_SHA_512,
		crypto.SHA512: keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_ED25519_PH_SHA_512,
	}
)

// tlsSchemes are TLS's names for what the service signs with.
var tlsSchemes = map[keyholdv1.SigningAlgorithmSpec]tls.SignatureScheme{
	keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_RSASSA_PSS_SHA_256:        tls.PSSWithSHA256,
	keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_RSASSA_PSS_SHA_384:        tls.PSSWithSHA384,
	keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_RSASSA_PSS_SHA_512:        tls.PSSWithSHA512,
	keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_RSASSA_PKCS1_V1_5_SHA_256: tls.PKCS1WithSHA256,
	keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_RSASSA_PKCS1_V1_5_SHA_384: tls.PKCS1WithSHA384,
	keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_RSASSA_PKCS1_V1_5_SHA_512: tls.PKCS1WithSHA512,
	keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_ECDSA_SHA_256:             tls.ECDSAWithP256AndSHA256,
	keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_ECDSA_SHA_384:             tls.ECDSAWithP384AndSHA384,
	keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_ECDSA_SHA_512:             tls.ECDSAWithP521AndSHA512,
	keyholdv1.SigningAlgorithmSpec_SIGNING_ALGORITHM_SPEC_ED25519_SHA_512:           tls.Ed25519,
}

// Certificate returns a tls.Certificate of the chain, leaf first, in DER, whose
// key is the Signer's. It is told which signatures the service makes: in TLS
// 1.2 a peer could ask for another hash than the curve's.
func (s *Signer) Certificate(chain ...[]byte) (tls.Certificate, error) {
	if len(chain) == 0 {
		return tls.Certificate{}, errors.New("certificate: the chain is empty")
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate: %w", err)
	}
	if own, ok := s.public.(interface{ Equal(crypto.PublicKey) bool }); !ok || !own.Equal(leaf.PublicKey) {
		return tls.Certificate{}, fmt.Errorf("certificate: it is not for the key %s", s.arn)
	}
	cert := tls.Certificate{Certificate: chain, PrivateKey: s, Leaf: leaf}
	for _, alg := range s.offered {
		if scheme, ok := tlsSchemes[alg]; ok {
			cert.SupportedSignatureAlgorithms = append(cert.SupportedSignatureAlgorithms, scheme)
		}
	}
	return cert, nil
}
