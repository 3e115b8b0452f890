package main

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// fakeAccessKeys is the fake's part for access keys.
type fakeAccessKeys struct {
	keyholdv1.UnimplementedAccessKeyServiceServer

	*fake
	keys []*keyholdv1.AccessKeyMetadata
}

// CreateAccessKey makes secrets that a shell must not take for its own, for the
// principal "evil".
func (f *fakeAccessKeys) CreateAccessKey(_ context.Context, req *keyholdv1.CreateAccessKeyRequest) (*keyholdv1.CreateAccessKeyResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.keys) == 2 {
		return nil, exception(codes.ResourceExhausted, "LimitExceededException", "Cannot exceed quota for AccessKeysPerUser: 2")
	}
	arn := "arn:aws:iam::000000000000:root"
	if req.PrincipalArn != nil {
		arn = req.GetPrincipalArn()
	}
	secret := "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
	if arn == "evil" {
		secret = "'; reboot #"
	}
	k := &keyholdv1.AccessKeyMetadata{
		PrincipalArn: arn, AccessKeyId: fmt.Sprintf("AKIATEST%012d", len(f.keys)+1), Status: keyholdv1.AccessKeyStatus_ACCESS_KEY_STATUS_ACTIVE,
		CreateDate: timestamppb.New(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)),
	}
	if secret[0] != '\'' {
		f.keys = append(f.keys, k)
	}
	return &keyholdv1.CreateAccessKeyResponse{AccessKey: &keyholdv1.AccessKey{
		PrincipalArn: arn, AccessKeyId: k.GetAccessKeyId(), Status: k.GetStatus(), CreateDate: k.GetCreateDate(), SecretAccessKey: []byte(secret),
	}}, nil
}

func (f *fakeAccessKeys) ListAccessKeys(context.Context, *keyholdv1.ListAccessKeysRequest) (*keyholdv1.ListAccessKeysResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &keyholdv1.ListAccessKeysResponse{AccessKeyMetadata: f.keys}, nil
}

func (f *fakeAccessKeys) one(id string) (*keyholdv1.AccessKeyMetadata, error) {
	for _, k := range f.keys {
		if k.GetAccessKeyId() == id {
			return k, nil
		}
	}
	return nil, exception(codes.NotFound, "NotFoundException", "The Access Key with id "+id+" cannot be found.")
}

func (f *fakeAccessKeys) UpdateAccessKey(_ context.Context, req *keyholdv1.UpdateAccessKeyRequest) (*keyholdv1.UpdateAccessKeyResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	k, err := f.one(req.GetAccessKeyId())
	if err == nil {
		k.Status = req.GetStatus()
	}
	return &keyholdv1.UpdateAccessKeyResponse{}, err
}

func (f *fakeAccessKeys) DeleteAccessKey(_ context.Context, req *keyholdv1.DeleteAccessKeyRequest) (*keyholdv1.DeleteAccessKeyResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, err := f.one(req.GetAccessKeyId())
	return &keyholdv1.DeleteAccessKeyResponse{}, err
}

func (f *fakeAccessKeys) GetAccessKeyLastUsed(_ context.Context, req *keyholdv1.GetAccessKeyLastUsedRequest) (*keyholdv1.GetAccessKeyLastUsedResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	k, err := f.one(req.GetAccessKeyId())
	if err != nil {
		return nil, err
	}
	return &keyholdv1.GetAccessKeyLastUsedResponse{PrincipalArn: k.GetPrincipalArn(), AccessKeyLastUsed: &keyholdv1.AccessKeyLastUsed{
		LastUsedDate: k.GetCreateDate(), ServiceName: "kms", Region: "us-east-1",
	}}, nil
}
