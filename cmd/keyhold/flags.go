package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/keyhold/keyhold/proto/awsjson"
	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// outputFormat is the value of --output.
type outputFormat string

const (
	outputTable outputFormat = "table"
	outputJSON  outputFormat = "json"
)

func (f *outputFormat) String() string { return string(*f) }
func (f *outputFormat) Type() string   { return "format" }

// Set parses table or json.
func (f *outputFormat) Set(s string) error {
	switch v := outputFormat(s); v {
	case outputTable, outputJSON:
		*f = v
		return nil
	}
	return errors.New("must be table or json")
}

// enum is a generated enum of the API.
type enum interface {
	~int32
	protoreflect.Enum
}

// enumFlag is a flag whose values are the AWS names of an enum, in capitals or
// not.
type enumFlag[E enum] struct{ value *E }

func (f enumFlag[E]) String() string {
	if f.value == nil {
		return ""
	}
	return awsjson.EnumName(*f.value)
}

func (f enumFlag[E]) Type() string { return "name" }

// Set parses an AWS name.
func (f enumFlag[E]) Set(s string) error {
	ed := E(0).Descriptor()
	n, ok := awsjson.ParseEnum(ed, strings.ToUpper(s))
	if !ok {
		return fmt.Errorf("must be one of %s", strings.Join(awsjson.EnumNames(ed), ", "))
	}
	*f.value = E(n)
	return nil
}

// enumVar declares a flag for an enum, with shell completion.
func enumVar[E enum](cmd *cobra.Command, p *E, name, usage string) {
	names := awsjson.EnumNames(E(0).Descriptor())
	cmd.Flags().Var(enumFlag[E]{p}, name, usage+": "+strings.Join(names, ", "))
	completeWords(cmd, name, names...)
}

// completeWords tells the shell what a flag's value may be.
func completeWords(cmd *cobra.Command, flag string, words ...string) {
	err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	if err != nil {
		panic(err) // the flag was declared a line above
	}
}

// pairsFlag is a flag that may be repeated, each time with NAME=value.
type pairsFlag map[string]string

func (f pairsFlag) String() string { return "" }
func (f pairsFlag) Type() string   { return "name=value" }

// Set adds one pair. The value may be empty and may hold further signs of
// equality; the name may not come twice.
func (f pairsFlag) Set(s string) error {
	name, val, ok := strings.Cut(s, "=")
	if !ok || name == "" {
		return errors.New("must be name=value")
	}
	if _, twice := f[name]; twice {
		return fmt.Errorf("%q is given twice", name)
	}
	f[name] = val
	return nil
}

// tags returns the pairs as tags, in the order of their names.
func (f pairsFlag) tags() []*keyholdv1.Tag {
	var tags []*keyholdv1.Tag
	for _, name := range slices.Sorted(maps.Keys(f)) {
		tags = append(tags, &keyholdv1.Tag{TagKey: name, TagValue: proto.String(f[name])})
	}
	return tags
}

// contextVar declares a flag for an encryption context.
func contextVar(cmd *cobra.Command, pairs pairsFlag, name, usage string) {
	cmd.Flags().Var(pairs, name, usage+"; may be repeated. It appears in the audit log")
}

// requireFlags marks flags without which the command makes no sense.
func requireFlags(cmd *cobra.Command, names ...string) {
	for _, name := range names {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err) // the flag was declared a line above
		}
	}
}
