// Command awsfacts derives from botocore's model of the AWS KMS API what
// Keyhold's tests compare the proto with: operations, members, types, enum
// values, constraints and errors. The facts alone: none of AWS's text. Of the
// examples it keeps inputs and outputs.
//
//	go run ./awsfacts DIR ../proto/awsjson/testdata
//
// where DIR holds service-2.json and examples-1.json of botocore's
// data/kms/2014-11-01. It is run by hand when the API grows.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// model is what is read of service-2.json.
type model struct {
	Metadata struct {
		APIVersion   string `json:"apiVersion"`
		JSONVersion  string `json:"jsonVersion"`
		TargetPrefix string `json:"targetPrefix"`
	} `json:"metadata"`
	Operations map[string]struct {
		Input, Output *ref
		Errors        []ref
	} `json:"operations"`
	Shapes map[string]shape `json:"shapes"`
}

type ref struct {
	Shape      string `json:"shape"`
	Deprecated bool   `json:"deprecated"`
}

type shape struct {
	Type                         string
	Members                      map[string]ref
	Required                     []string
	Member, Key, Value           *ref
	Enum                         []string
	Min, Max                     *int64
	Pattern                      string
	Deprecated, Exception, Fault bool
	Sensitive                    bool
}

// facts is what is written.
type facts struct {
	APIVersion   string               `json:"apiVersion"`
	JSONVersion  string               `json:"jsonVersion"`
	TargetPrefix string               `json:"targetPrefix"`
	Operations   map[string]operation `json:"operations"`
	// Structures are by name, their members by name.
	Structures map[string]map[string]member `json:"structures"`
	Enums      map[string]enum              `json:"enums"`
	// Errors give the HTTP status of each exception: 500 for faults of the
	// service, else 400, as the JSON protocol has it.
	Errors map[string]int `json:"errors"`
}

type operation struct {
	Input string `json:"input"`
	// Output is empty where AWS answers without a body.
	Output string   `json:"output,omitempty"`
	Errors []string `json:"errors"`
}

type enum struct {
	Values     []string `json:"values"`
	Deprecated bool     `json:"deprecated,omitempty"`
}

// member is one member of a structure, or an element of a list or map.
type member struct {
	// Type is string, blob, boolean, integer, timestamp, enum, structure, list
	// or map.
	Type string `json:"type"`
	// Name is that of the enum or the structure.
	Name       string  `json:"name,omitempty"`
	Required   bool    `json:"required,omitempty"`
	Deprecated bool    `json:"deprecated,omitempty"`
	Sensitive  bool    `json:"sensitive,omitempty"`
	Min        *int64  `json:"min,omitempty"`
	Max        *int64  `json:"max,omitempty"`
	Pattern    string  `json:"pattern,omitempty"`
	Key        *member `json:"key,omitempty"`
	Element    *member `json:"element,omitempty"`
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: awsfacts MODEL-DIR OUTPUT-DIR")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "awsfacts:", err)
		os.Exit(1)
	}
}

func run(from, to string) error {
	var m model
	if err := read(filepath.Join(from, "service-2.json"), &m); err != nil {
		return err
	}
	if err := write(filepath.Join(to, "kms-facts.json"), derive(&m)); err != nil {
		return err
	}
	type example struct {
		Input  json.RawMessage `json:"input"`
		Output json.RawMessage `json:"output,omitempty"`
	}
	var examples struct {
		Examples map[string][]example `json:"examples"`
	}
	if err := read(filepath.Join(from, "examples-1.json"), &examples); err != nil {
		return err
	}
	return write(filepath.Join(to, "kms-examples.json"), examples.Examples)
}

func read(path string, into any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func write(path string, v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", " ")
	if err := enc.Encode(v); err != nil {
		return err
	}
	return os.WriteFile(path, b.Bytes(), 0o644)
}

func derive(m *model) facts {
	f := facts{
		APIVersion: m.Metadata.APIVersion, JSONVersion: m.Metadata.JSONVersion, TargetPrefix: m.Metadata.TargetPrefix,
		Operations: map[string]operation{}, Structures: map[string]map[string]member{}, Enums: map[string]enum{}, Errors: map[string]int{},
	}
	for name, op := range m.Operations {
		o := operation{Errors: []string{}}
		if op.Input != nil {
			o.Input = op.Input.Shape
		}
		if op.Output != nil {
			o.Output = op.Output.Shape
		}
		for _, e := range op.Errors {
			o.Errors = append(o.Errors, e.Shape)
		}
		f.Operations[name] = o
	}
	for name, s := range m.Shapes {
		switch {
		case s.Exception && s.Fault:
			f.Errors[name] = 500
		case s.Exception:
			f.Errors[name] = 400
		case s.Type == "structure":
			members := map[string]member{}
			for k, r := range s.Members {
				mm := m.member(r)
				for _, req := range s.Required {
					mm.Required = mm.Required || req == k
				}
				members[k] = mm
			}
			f.Structures[name] = members
		case s.Enum != nil:
			f.Enums[name] = enum{Values: s.Enum, Deprecated: s.Deprecated}
		}
	}
	return f
}

func (m *model) member(r ref) member {
	s := m.Shapes[r.Shape]
	out := member{Type: s.Type, Deprecated: r.Deprecated, Sensitive: s.Sensitive, Min: s.Min, Max: s.Max, Pattern: s.Pattern}
	switch {
	case s.Enum != nil:
		out.Type, out.Name = "enum", r.Shape
	case s.Type == "structure":
		out.Name = r.Shape
	case s.Type == "list":
		e := m.member(*s.Member)
		out.Element = &e
	case s.Type == "map":
		k, v := m.member(*s.Key), m.member(*s.Value)
		out.Key, out.Element = &k, &v
	}
	return out
}
