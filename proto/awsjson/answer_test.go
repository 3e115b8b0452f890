package awsjson_test

import (
	"testing"

	"github.com/keyhold/keyhold/proto/awsjson"
)

// Answers of AWS's operations that have no output are no body at all, and those
// whose output has no members are an empty object.
func TestAppendAnswer(t *testing.T) {
	var f facts
	readTestdata(t, "kms-facts.json", &f)
	enc := awsjson.NewEncoder(awsjson.Options{EpochTimes: true})
	none, empty := 0, 0
	for name, md := range apiMethods() {
		op, ok := f.Operations[name]
		if !ok {
			continue
		}
		got := string(enc.AppendAnswer([]byte("x"), md, newMessage(t, md.Output())))
		switch {
		case op.Output == "":
			none++
			if got != "x" {
				t.Errorf("%s answers %s", name, got)
			}
		case len(f.Structures[op.Output]) == 0:
			empty++
			if got != "x{}" {
				t.Errorf("%s answers %s", name, got)
			}
		case len(got) < len("x{}"):
			t.Errorf("%s answers %s", name, got)
		}
	}
	if none != 14 || empty != 4 {
		t.Errorf("%d operations without a body, %d with an empty one; AWS has 14 and 4", none, empty)
	}
}
