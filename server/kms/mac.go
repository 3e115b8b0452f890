package kms

import (
	"context"
	"crypto/subtle"
	"fmt"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// checkMac is step 8: an HMAC key has one algorithm.
func checkMac(c *call, alg keyholdv1.MacAlgorithmSpec) error {
	if f := factsOf(c.key(0).rec.Spec); f.mac != alg {
		return errorf(CodeInvalidKeyUsage, "Algorithm %s is incompatible with key spec %s.", awsName(alg), awsName(c.key(0).rec.Spec))
	}
	return nil
}

func (s *Service) checkGenerateMac(c *call, r *keyholdv1.GenerateMacRequest) error {
	return checkMac(c, r.GetMacAlgorithm())
}

func (s *Service) checkVerifyMac(c *call, r *keyholdv1.VerifyMacRequest) error {
	return checkMac(c, r.GetMacAlgorithm())
}

func (s *Service) mac(ctx context.Context, sub *subject, message []byte) ([]byte, error) {
	m, err := powerOf[MACer](s, sub.rec, "HMAC")
	if err != nil {
		return nil, err
	}
	out, err := m.MAC(ctx, sub.rec.Current().Locator, message)
	if err != nil {
		return nil, fmt.Errorf("mac with %s: %w", sub.arn, err)
	}
	return out, nil
}

func (s *Service) generateMac(ctx context.Context, c *call, r *keyholdv1.GenerateMacRequest) (*keyholdv1.GenerateMacResponse, error) {
	out, err := s.mac(ctx, c.key(0), r.GetMessage())
	if err != nil {
		return nil, err
	}
	return &keyholdv1.GenerateMacResponse{Mac: out, MacAlgorithm: r.GetMacAlgorithm(), KeyId: c.key(0).arn}, nil
}

func (s *Service) verifyMac(ctx context.Context, c *call, r *keyholdv1.VerifyMacRequest) (*keyholdv1.VerifyMacResponse, error) {
	want, err := s.mac(ctx, c.key(0), r.GetMessage())
	if err != nil {
		return nil, err
	}
	defer clear(want)
	// ConstantTimeCompare returns 0 for other lengths: truncated MACs are
	// refused.
	if subtle.ConstantTimeCompare(want, r.GetMac()) != 1 {
		return nil, errorf(CodeInvalidMac, "")
	}
	valid := true
	return &keyholdv1.VerifyMacResponse{KeyId: c.key(0).arn, MacValid: &valid, MacAlgorithm: r.GetMacAlgorithm()}, nil
}
