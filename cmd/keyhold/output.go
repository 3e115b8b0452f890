package main

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/keyhold/keyhold/proto/awsjson"
)

// encode returns b as it is to be shown. Text forms end in a line feed. The
// result may be b itself.
func encode(b []byte, enc encoding) []byte {
	switch enc {
	case encodingBase64:
		return append(base64.StdEncoding.AppendEncode(make([]byte, 0, base64.StdEncoding.EncodedLen(len(b))+1), b), '\n')
	case encodingHex:
		return append(hex.AppendEncode(make([]byte, 0, 2*len(b)+1), b), '\n')
	}
	return b
}

// writeBytes puts the bytes that a command is about where the user wants
// them: into a file, or on standard output. Unless an encoding was asked for
// that is raw, but base64 on a terminal, which would obey what it is sent.
// It clears b and all that it made of it.
func (a *app) writeBytes(b []byte, file string, enc encoding) error {
	if enc == "" {
		enc = encodingRaw
		if file == "" && a.isTerminal(a.stdout) {
			enc = encodingBase64
		}
	}
	out := encode(b, enc)
	defer clear(b)
	defer clear(out)
	if file != "" {
		return writeFile(file, out)
	}
	return a.write(out)
}

// write writes to standard output. What cannot be written is a failure: a full
// disk must not look like success.
func (a *app) write(b []byte) error {
	if _, err := a.stdout.Write(b); err != nil {
		return fmt.Errorf("write standard output: %w", err)
	}
	return nil
}

// sameFile tells whether two files that writeFile is to write, if both are
// named, have one name: the second would replace the first. Devices are not
// replaced.
func sameFile(a, b string) bool {
	if a == "" || b == "" || realPath(a) != realPath(b) {
		return false
	}
	info, err := os.Stat(a)
	return err != nil || info.Mode().IsRegular()
}

// realPath is the one name of a file that need not exist. A link in its folder
// is followed; the file itself may be one, which would be replaced.
func realPath(path string) string {
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return filepath.Clean(path)
	}
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	return filepath.Join(dir, filepath.Base(path))
}

// writeFile writes a file of mode 0600: all of it under its name, or nothing.
// Devices and pipes are written to as they are.
func writeFile(path string, b []byte) (err error) {
	if info, statErr := os.Stat(path); statErr == nil && !info.Mode().IsRegular() {
		f, err := openDevice(path)
		if err != nil {
			return err
		}
		_, err = f.Write(b)
		return errors.Join(err, f.Close())
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".keyhold-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// printJSON writes v, which is JSON on one line, for people and scripts. It
// clears v: it may hold a plaintext.
func (a *app) printJSON(v []byte) error {
	defer clear(v)
	b := bytes.NewBuffer(make([]byte, 0, 2*len(v)+1024))
	if err := json.Indent(b, v, "", "  "); err != nil {
		return err
	}
	b.WriteByte('\n')
	defer clear(b.Bytes())
	return a.write(b.Bytes())
}

// printMessage writes a structure of the API: its members with AWS's names,
// as a JSON object or as two columns. People are spared the members that AWS
// keeps for old programs: another one says the same.
func (a *app) printMessage(m proto.Message) error {
	if a.output == outputJSON {
		return a.printJSON(awsjson.NewEncoder(awsjson.Options{}).AppendMessage(nil, m))
	}
	var rows [][]string
	pm := m.ProtoReflect()
	fields := pm.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if opts, _ := fd.Options().(*descriptorpb.FieldOptions); pm.Has(fd) && !opts.GetDeprecated() {
			rows = append(rows, []string{awsjson.MemberName(fd), fieldText(fd, pm.Get(fd))})
		}
	}
	return a.printRows(nil, rows)
}

// printList writes a list of structures: as the JSON object that holds it, or
// as one line each, with a column for each member in columns.
func (a *app) printList(whole proto.Message, field string, columns ...string) error {
	if a.output == outputJSON {
		return a.printMessage(whole)
	}
	pm := whole.ProtoReflect()
	listField := pm.Descriptor().Fields().ByName(protoreflect.Name(field))
	list := pm.Get(listField).List()
	header := make([]string, len(columns))
	for i, column := range columns {
		header[i] = strings.ToUpper(strings.ReplaceAll(column, "_", " "))
	}
	var rows [][]string
	for i := range list.Len() {
		item := list.Get(i).Message()
		row := make([]string, len(columns))
		for j, column := range columns {
			if fd := item.Descriptor().Fields().ByName(protoreflect.Name(column)); item.Has(fd) {
				row[j] = fieldText(fd, item.Get(fd))
			}
		}
		rows = append(rows, row)
	}
	return a.printRows(header, rows)
}

// printRows writes aligned columns. Cells come from other people: what a
// terminal could obey is escaped.
func (a *app) printRows(header []string, rows [][]string) error {
	var b bytes.Buffer
	tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	if header != nil {
		rows = append([][]string{header}, rows...)
	}
	for _, row := range rows {
		for i, cell := range row {
			end := "\t"
			if i == len(row)-1 {
				end = "\n"
			}
			if _, err := io.WriteString(tw, printable(cell)+end); err != nil {
				return err
			}
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	defer clear(b.Bytes())
	return a.write(b.Bytes())
}

// fieldText returns a field's value in the words of AWS.
func fieldText(fd protoreflect.FieldDescriptor, v protoreflect.Value) string {
	if fd.IsList() {
		items := make([]string, v.List().Len())
		for i := range items {
			items[i] = valueText(fd, v.List().Get(i))
		}
		return strings.Join(items, ", ")
	}
	return valueText(fd, v)
}

func valueText(fd protoreflect.FieldDescriptor, v protoreflect.Value) string {
	switch fd.Kind() {
	case protoreflect.EnumKind:
		if d := fd.Enum().Values().ByNumber(v.Enum()); d != nil {
			return awsjson.ValueName(d)
		}
	case protoreflect.BytesKind:
		return base64.StdEncoding.EncodeToString(v.Bytes())
	case protoreflect.MessageKind:
		if ts, ok := v.Message().Interface().(*timestamppb.Timestamp); ok {
			return ts.AsTime().Format("2006-01-02T15:04:05.999Z07:00")
		}
	}
	return v.String()
}

// printable escapes what a terminal would obey or what would break a line:
// control characters, C1 controls, bytes that are not UTF-8, and marks that
// change the direction of text.
func printable(s string) string {
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == utf8.RuneError && !strings.HasPrefix(s[i:], "\ufffd"):
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r < 0x20 || r >= 0x7f && r <= 0x9f,
			r >= 0x200e && r <= 0x200f, r >= 0x2028 && r <= 0x202e, r >= 0x2066 && r <= 0x2069:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}
