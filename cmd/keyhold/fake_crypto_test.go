package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// blob is the fake's ciphertext: it hides nothing.
type blob struct {
	Key       string
	Context   map[string]string
	Plaintext []byte
}

func (f *fake) seal(ctx context.Context, key string, pairs map[string]string, plaintext []byte) ([]byte, *keyholdv1.KeyMetadata, error) {
	meta, err := f.find(ctx, key)
	if err != nil {
		return nil, nil, err
	}
	b, err := json.Marshal(blob{meta.GetKeyId(), pairs, plaintext})
	return append([]byte{0}, b...), meta, err
}

func (f *fake) open(ctx context.Context, raw []byte, pairs map[string]string) ([]byte, *keyholdv1.KeyMetadata, error) {
	var b blob
	if len(raw) == 0 || raw[0] != 0 || json.Unmarshal(raw[1:], &b) != nil || fmt.Sprint(b.Context) != fmt.Sprint(pairs) {
		return nil, nil, exception(codes.InvalidArgument, "InvalidCiphertextException", "")
	}
	meta, err := f.find(ctx, b.Key)
	return b.Plaintext, meta, err
}

func (f *fake) Encrypt(ctx context.Context, req *keyholdv1.EncryptRequest) (*keyholdv1.EncryptResponse, error) {
	b, meta, err := f.seal(ctx, req.GetKeyId(), req.GetEncryptionContext(), req.GetPlaintext())
	return &keyholdv1.EncryptResponse{
		CiphertextBlob: b, KeyId: meta.GetArn(),
		EncryptionAlgorithm: keyholdv1.EncryptionAlgorithmSpec_ENCRYPTION_ALGORITHM_SPEC_SYMMETRIC_DEFAULT,
	}, err
}

func (f *fake) Decrypt(ctx context.Context, req *keyholdv1.DecryptRequest) (*keyholdv1.DecryptResponse, error) {
	plaintext, meta, err := f.open(ctx, req.GetCiphertextBlob(), req.GetEncryptionContext())
	return &keyholdv1.DecryptResponse{Plaintext: plaintext, KeyId: meta.GetArn()}, err
}

func (f *fake) ReEncrypt(ctx context.Context, req *keyholdv1.ReEncryptRequest) (*keyholdv1.ReEncryptResponse, error) {
	plaintext, source, err := f.open(ctx, req.GetCiphertextBlob(), req.GetSourceEncryptionContext())
	if err != nil {
		return nil, err
	}
	b, meta, err := f.seal(ctx, req.GetDestinationKeyId(), req.GetDestinationEncryptionContext(), plaintext)
	return &keyholdv1.ReEncryptResponse{CiphertextBlob: b, KeyId: meta.GetArn(), SourceKeyId: source.GetArn()}, err
}

func (f *fake) GenerateDataKey(ctx context.Context, req *keyholdv1.GenerateDataKeyRequest) (*keyholdv1.GenerateDataKeyResponse, error) {
	n := req.GetNumberOfBytes()
	if req.GetKeySpec() == keyholdv1.DataKeySpec_DATA_KEY_SPEC_AES_256 {
		n = 32
	}
	plaintext := bytes.Repeat([]byte{0x5a}, int(n))
	b, meta, err := f.seal(ctx, req.GetKeyId(), req.GetEncryptionContext(), plaintext)
	return &keyholdv1.GenerateDataKeyResponse{CiphertextBlob: b, Plaintext: plaintext, KeyId: meta.GetArn()}, err
}

func (f *fake) GenerateDataKeyWithoutPlaintext(ctx context.Context, req *keyholdv1.GenerateDataKeyWithoutPlaintextRequest) (*keyholdv1.GenerateDataKeyWithoutPlaintextResponse, error) {
	b, meta, err := f.seal(ctx, req.GetKeyId(), req.GetEncryptionContext(), bytes.Repeat([]byte{0x5a}, 32))
	return &keyholdv1.GenerateDataKeyWithoutPlaintextResponse{CiphertextBlob: b, KeyId: meta.GetArn()}, err
}

func (f *fake) GenerateRandom(_ context.Context, req *keyholdv1.GenerateRandomRequest) (*keyholdv1.GenerateRandomResponse, error) {
	return &keyholdv1.GenerateRandomResponse{Plaintext: bytes.Repeat([]byte{0xa5}, int(req.GetNumberOfBytes()))}, nil
}

// digest returns what is signed or authenticated.
func digest(message []byte, kind keyholdv1.MessageType) []byte {
	if kind == keyholdv1.MessageType_MESSAGE_TYPE_DIGEST {
		return message
	}
	sum := sha256.Sum256(message)
	return sum[:]
}

func (f *fake) Sign(ctx context.Context, req *keyholdv1.SignRequest) (*keyholdv1.SignResponse, error) {
	meta, err := f.find(ctx, req.GetKeyId())
	if err != nil {
		return nil, err
	}
	sig, err := ecdsa.SignASN1(rand.Reader, f.private, digest(req.GetMessage(), req.GetMessageType()))
	return &keyholdv1.SignResponse{KeyId: meta.GetArn(), Signature: sig, SigningAlgorithm: req.GetSigningAlgorithm()}, err
}

func (f *fake) Verify(ctx context.Context, req *keyholdv1.VerifyRequest) (*keyholdv1.VerifyResponse, error) {
	meta, err := f.find(ctx, req.GetKeyId())
	if err != nil {
		return nil, err
	}
	if !ecdsa.VerifyASN1(&f.private.PublicKey, digest(req.GetMessage(), req.GetMessageType()), req.GetSignature()) {
		return nil, exception(codes.InvalidArgument, "KMSInvalidSignatureException", "")
	}
	return &keyholdv1.VerifyResponse{KeyId: meta.GetArn(), SignatureValid: proto.Bool(true), SigningAlgorithm: req.GetSigningAlgorithm()}, nil
}

func (f *fake) GetPublicKey(ctx context.Context, req *keyholdv1.GetPublicKeyRequest) (*keyholdv1.GetPublicKeyResponse, error) {
	meta, err := f.find(ctx, req.GetKeyId())
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(&f.private.PublicKey)
	return &keyholdv1.GetPublicKeyResponse{KeyId: meta.GetArn(), PublicKey: der, KeySpec: meta.GetKeySpec()}, err
}

func mac(message []byte) []byte {
	h := hmac.New(sha256.New, []byte("a key of the fake"))
	h.Write(message)
	return h.Sum(nil)
}

func (f *fake) GenerateMac(ctx context.Context, req *keyholdv1.GenerateMacRequest) (*keyholdv1.GenerateMacResponse, error) {
	meta, err := f.find(ctx, req.GetKeyId())
	return &keyholdv1.GenerateMacResponse{Mac: mac(req.GetMessage()), MacAlgorithm: req.GetMacAlgorithm(), KeyId: meta.GetArn()}, err
}

func (f *fake) VerifyMac(ctx context.Context, req *keyholdv1.VerifyMacRequest) (*keyholdv1.VerifyMacResponse, error) {
	meta, err := f.find(ctx, req.GetKeyId())
	if err != nil {
		return nil, err
	}
	if !hmac.Equal(mac(req.GetMessage()), req.GetMac()) {
		return nil, exception(codes.InvalidArgument, "KMSInvalidMacException", "")
	}
	return &keyholdv1.VerifyMacResponse{KeyId: meta.GetArn(), MacValid: proto.Bool(true), MacAlgorithm: req.GetMacAlgorithm()}, nil
}

// Batch knows Encrypt, and refuses all else.
func (f *fake) Batch(ctx context.Context, req *keyholdv1.BatchRequest) (*keyholdv1.BatchResponse, error) {
	resp := &keyholdv1.BatchResponse{}
	for _, item := range req.GetItems() {
		result := &keyholdv1.BatchResult{Result: &keyholdv1.BatchResult_Error{Error: &keyholdv1.BatchError{Exception: "UnsupportedOperationException"}}}
		if item.GetEncrypt() != nil {
			encrypted, err := f.Encrypt(ctx, item.GetEncrypt())
			if err != nil {
				return nil, err
			}
			result.Result = &keyholdv1.BatchResult_Encrypt{Encrypt: encrypted}
		}
		resp.Results = append(resp.Results, result)
	}
	return resp, nil
}
