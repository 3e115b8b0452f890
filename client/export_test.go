package client

import (
	"time"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// NewCoalescerOver makes a Coalescer over a service that is not a connection,
// so that a test can hold the clock.
func NewCoalescerOver(service keyholdv1.CryptographyServiceClient, retry Retry, timeout time.Duration, cfg CoalescerConfig) (*Coalescer, error) {
	retry, err := retry.withDefaults()
	if err != nil {
		return nil, err
	}
	return newCoalescer(service, retry, timeout, cfg)
}
