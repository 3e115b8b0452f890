package backup

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/keyhold/keyhold/server/audit"
)

// Change is a change of keys, aliases or access keys that the journal tells of.
type Change struct {
	Seq  uint64
	Time time.Time
	// Name is the operation, such as CreateKey.
	Name string
	// Resource is what it was about, as far as the record says: an ARN, or the id of
	// an access key and whose it is.
	Resource string
}

// maxChanges bounds what is listed; more are counted.
const maxChanges = 1000

// changesSince returns the changes that the journal in dir records as done from
// number from on and that match, and how many there are in all.
func changesSince(dir string, from uint64, match func(Change) bool) (changes []Change, total int, err error) {
	for rec, err := range audit.Read(dir, from) {
		if err != nil {
			return nil, 0, fmt.Errorf("read what was recorded last: %w", err)
		}
		var e struct {
			EventName  string `json:"eventName"`
			ErrorCode  string `json:"errorCode"`
			ReadOnly   bool   `json:"readOnly"`
			Additional struct {
				Phase       audit.Phase `json:"phase"`
				AccessKeyID string      `json:"accessKeyId"`
				Principal   string      `json:"principalArn"`
			} `json:"additionalEventData"`
			Resources []struct {
				ARN string `json:"ARN"`
			} `json:"resources"`
		}
		if rec.Kind != audit.KindEvent || json.Unmarshal(rec.Payload, &e) != nil {
			continue
		}
		// Only changes have phases (docs/decisions/0008).
		if e.Additional.Phase != audit.PhaseOutcome || e.ErrorCode != "" {
			continue
		}
		c := Change{Seq: rec.Seq, Time: rec.Time, Name: e.EventName}
		switch {
		case e.Additional.AccessKeyID != "":
			c.Resource = e.Additional.AccessKeyID + " of " + e.Additional.Principal
		case len(e.Resources) > 0:
			c.Resource = e.Resources[0].ARN
		}
		if !match(c) {
			continue
		}
		if total++; total <= maxChanges {
			changes = append(changes, c)
		}
	}
	return changes, total, nil
}
