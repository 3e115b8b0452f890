package kms

import (
	"testing"
	"time"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// TestDeleteLooksAtTheDateAgain: between the look for what is due and the
// deletion a key may be cancelled and scheduled anew. The service has no store
// and no key store: touching them would be a panic.
func TestDeleteLooksAtTheDateAgain(t *testing.T) {
	now := time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)
	for _, r := range []*KeyRecord{
		{State: keyholdv1.KeyState_KEY_STATE_PENDING_DELETION, DeletionDate: now.Add(1)},
		{State: keyholdv1.KeyState_KEY_STATE_DISABLED, DeletionDate: now},
	} {
		e := &entry{}
		e.rec.Store(r)
		if err := (&Service{}).deleteKey(t.Context(), e, now); err != nil {
			t.Errorf("%+v: %v", r, err)
		}
	}
}
