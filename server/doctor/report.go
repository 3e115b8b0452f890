package doctor

import (
	"time"

	"github.com/keyhold/keyhold/hsm"
)

// Status is the outcome of a check.
type Status string

// The outcomes. Warnings do not make a report a failed one.
const (
	OK      Status = "ok"
	Warn    Status = "warn"
	Fail    Status = "fail"
	Skipped Status = "skipped"
)

// Check is one thing that was looked at.
type Check struct {
	// Name says what was looked at; the names are stable. Several checks may
	// have one name, with different subjects.
	Name string `json:"name"`
	// Subject is the token, file or setting that it is about. It may be empty.
	Subject string `json:"subject,omitempty"`
	Status  Status `json:"status"`
	// Fact is what was found, or why the check was skipped.
	Fact string `json:"fact"`
	// Remedy is what to do about a problem.
	Remedy string `json:"remedy,omitempty"`
	// Details are more facts, a line each.
	Details []string `json:"details,omitempty"`
	// Evidence is what was seen where all is well. The table leaves it out.
	Evidence []string `json:"evidence,omitempty"`
}

// Report is the outcome of Run.
type Report struct {
	Version string        `json:"version"`
	Time    time.Time     `json:"time"`
	Checks  []Check       `json:"checks"`
	Tokens  []TokenReport `json:"tokens"`
}

// TokenReport is what was found out about a token that could be logged in to.
type TokenReport struct {
	Name         string           `json:"name"`
	Module       string           `json:"module"`
	Library      string           `json:"library"`
	Label        string           `json:"label"`
	Serial       string           `json:"serial"`
	Manufacturer string           `json:"manufacturer"`
	Model        string           `json:"model"`
	Firmware     string           `json:"firmware"`
	Software     bool             `json:"software"` // SoftHSM: no protection from root
	Capabilities hsm.Capabilities `json:"capabilities"`
	Objects      []ObjectReport   `json:"objects"`
}

// ObjectReport is a private or secret object of a token.
type ObjectReport struct {
	Class            string `json:"class"`
	KeyType          string `json:"keyType"`
	Label            string `json:"label"`
	ID               string `json:"id"` // hexadecimal
	Sensitive        bool   `json:"sensitive"`
	AlwaysSensitive  bool   `json:"alwaysSensitive"`
	NeverExtractable bool   `json:"neverExtractable"`
	Local            bool   `json:"local"`
	Private          bool   `json:"private"`
	// Keyhold tells whether its label says that Keyhold made it.
	Keyhold bool `json:"keyhold"`
	// Problem says what speaks against its custody; empty when it is proven.
	Problem string `json:"problem,omitempty"`
}

// Count returns how many checks had the outcome.
func (r *Report) Count(s Status) int {
	n := 0
	for _, c := range r.Checks {
		if c.Status == s {
			n++
		}
	}
	return n
}

// Failed tells whether a check failed.
func (r *Report) Failed() bool { return r.Count(Fail) > 0 }

func (e *exam) add(c Check) { e.report.Checks = append(e.report.Checks, c) }

func (e *exam) ok(name, subject, fact string) {
	e.add(Check{Name: name, Subject: subject, Status: OK, Fact: fact})
}

func (e *exam) warn(name, subject, fact, remedy string) {
	e.add(Check{Name: name, Subject: subject, Status: Warn, Fact: fact, Remedy: remedy})
}

func (e *exam) fail(name, subject, fact, remedy string) {
	e.add(Check{Name: name, Subject: subject, Status: Fail, Fact: fact, Remedy: remedy})
}

func (e *exam) skip(name, subject, because string) {
	e.add(Check{Name: name, Subject: subject, Status: Skipped, Fact: because})
}
