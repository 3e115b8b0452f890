package kms

import (
	"context"
	"crypto/sha256"
	"encoding/base32"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

func (s *Service) getCallerIdentity(_ context.Context, c *call, _ *keyholdv1.GetCallerIdentityRequest) (*keyholdv1.GetCallerIdentityResponse, error) {
	p := c.caller.Principal
	return &keyholdv1.GetCallerIdentityResponse{UserId: uniqueID(p.Type, p.ARN, string(p.Account)), Account: string(p.Account), Arn: p.ARN}, nil
}

// uniqueID is what AWS calls a principal's unique id: the account's for its root,
// else a prefix for its kind and 17 letters and digits. Here they are made of the
// ARN, so that they stay the same.
func uniqueID(kind, arn, account string) string {
	prefix := "AIDA"
	switch kind {
	case "Root":
		return account
	case "Role":
		prefix = "AROA"
	}
	sum := sha256.Sum256([]byte("unique id of " + arn))
	return prefix + base32.StdEncoding.EncodeToString(sum[:])[:17]
}
