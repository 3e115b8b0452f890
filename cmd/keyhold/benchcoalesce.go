package main

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/keyhold/keyhold/client"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// sharedConn is a connection of --coalesce: the client package's, since it is
// the Coalescer that is measured.
type sharedConn struct {
	client    *client.Client
	coalescer *client.Coalescer
}

func newSharedConn(conf client.Config) (*sharedConn, error) {
	conf.Retry.MaxAttempts = 1 // what fails is to be counted
	c, err := client.Dial(conf)
	if err != nil {
		return nil, err
	}
	coalescer, err := client.NewCoalescer(c, client.CoalescerConfig{})
	if err != nil {
		c.Close()
		return nil, err
	}
	return &sharedConn{c, coalescer}, nil
}

func (s *sharedConn) close() {
	s.coalescer.Close()
	s.client.Close()
}

// call makes the call of a request, which must be one that batches have.
func call(ctx context.Context, c *client.Coalescer, req proto.Message) error {
	var err error
	switch r := req.(type) {
	case *keyholdv1.EncryptRequest:
		_, err = c.Encrypt(ctx, r)
	case *keyholdv1.DecryptRequest:
		_, err = c.Decrypt(ctx, r)
	case *keyholdv1.ReEncryptRequest:
		_, err = c.ReEncrypt(ctx, r)
	case *keyholdv1.GenerateDataKeyRequest:
		_, err = c.GenerateDataKey(ctx, r)
	case *keyholdv1.SignRequest:
		_, err = c.Sign(ctx, r)
	case *keyholdv1.VerifyRequest:
		_, err = c.Verify(ctx, r)
	case *keyholdv1.GenerateMacRequest:
		_, err = c.GenerateMac(ctx, r)
	case *keyholdv1.VerifyMacRequest:
		_, err = c.VerifyMac(ctx, r)
	default:
		err = fmt.Errorf("a Coalescer does not send %s together", req.ProtoReflect().Descriptor().Name())
	}
	return err
}
