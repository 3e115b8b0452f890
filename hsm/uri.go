package hsm

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// maxURIBytes bounds a pkcs11: URI.
const maxURIBytes = 8 << 10

// ParseURI reads a token's configuration from a PKCS#11 URI (RFC 7512):
//
//	pkcs11:token=keyhold?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/etc/keyhold/pin
//
// Understood are token, serial, module-path and pin-source. The last takes file:/absolute/path, a plain absolute path, env:NAME, and
// credential:NAME. Everything else is refused rather than passed over, since an attribute that is not obeyed would select another token than
// its writer meant: slot-id because slot numbers change, pin-value because a PIN does not belong into a configuration, and the attributes of
// objects because a token is wanted here. Other fields of Config have their defaults. Open checks the rest.
//
// Errors never contain the value of pin-value.
func ParseURI(uri string) (Config, error) {
	var c Config
	if len(uri) > maxURIBytes {
		return c, fmt.Errorf("hsm: the pkcs11: URI is longer than %d bytes", maxURIBytes)
	}
	scheme, rest, ok := strings.Cut(uri, ":")
	if !ok || !strings.EqualFold(scheme, "pkcs11") {
		return c, errors.New("hsm: not a PKCS#11 URI: it starts with \"pkcs11:\"")
	}
	path, query, _ := strings.Cut(rest, "?")
	seen := map[string]bool{}
	for _, part := range []struct {
		text, separator, allowed string
		set                      func(name, value string) error
	}{
		{path, ";", pathChars, c.setPath},
		{query, "&", queryChars, c.setQuery},
	} {
		if part.text == "" {
			continue
		}
		for _, attribute := range strings.Split(part.text, part.separator) {
			name, raw, ok := strings.Cut(attribute, "=")
			if !ok || name == "" {
				return Config{}, fmt.Errorf("hsm: PKCS#11 URI: attributes are name=value, separated by %q", part.separator)
			}
			if !isAttributeName(name) {
				return Config{}, errors.New("hsm: PKCS#11 URI: an attribute's name holds a character that names do not have (RFC 7512, 2.3)")
			}
			if name == "pin-value" {
				return Config{}, errors.New("hsm: PKCS#11 URI: pin-value is refused, a PIN does not belong into a configuration: put it into a file of mode 0600 and write pin-source=file:/path")
			}
			if seen[name] {
				return Config{}, fmt.Errorf("hsm: PKCS#11 URI: %s is given twice", name)
			}
			seen[name] = true
			value, err := unescape(raw, part.allowed)
			if err != nil {
				return Config{}, fmt.Errorf("hsm: PKCS#11 URI: %s: %w", name, err)
			}
			if value == "" {
				return Config{}, fmt.Errorf("hsm: PKCS#11 URI: %s is empty", name)
			}
			if err := part.set(name, value); err != nil {
				return Config{}, err
			}
		}
	}
	return c, nil
}

// setPath takes an attribute of the URI's path.
func (c *Config) setPath(name, value string) error {
	switch name {
	case "token":
		c.TokenLabel = value
	case "serial":
		c.TokenSerial = value
	case "slot-id", "slot-description", "slot-manufacturer":
		return fmt.Errorf("hsm: PKCS#11 URI: %s is refused, slots change from one start to the next: name the token by token= or serial=", name)
	case "object", "type", "id":
		return fmt.Errorf("hsm: PKCS#11 URI: %s names an object, but a token is wanted here", name)
	case "manufacturer", "model", "library-manufacturer", "library-description", "library-version":
		return fmt.Errorf("hsm: PKCS#11 URI: %s is not supported: name the token by token= or serial=", name)
	case "module-path", "module-name", "pin-source":
		return fmt.Errorf("hsm: PKCS#11 URI: %s belongs behind the \"?\"", name)
	default:
		return fmt.Errorf("hsm: PKCS#11 URI: unknown attribute %q", name)
	}
	return nil
}

// setQuery takes an attribute of the URI's query.
func (c *Config) setQuery(name, value string) error {
	switch name {
	case "module-path":
		c.Module = value
	case "module-name":
		return errors.New("hsm: PKCS#11 URI: module-name is not supported: give the library's absolute path as module-path=")
	case "pin-source":
		source, err := ParsePINSource(value)
		if err != nil {
			return err
		}
		c.PIN = source
	default:
		return fmt.Errorf("hsm: PKCS#11 URI: unknown attribute %q behind the \"?\"", name)
	}
	return nil
}

// ParsePINSource reads what PINSource.String writes: file:/absolute/path, env:NAME, credential:NAME; and a plain absolute path.
func ParsePINSource(text string) (PINSource, error) {
	var p PINSource
	kind, name, ok := strings.Cut(text, ":")
	switch {
	case filepath.IsAbs(text):
		p = PINFile(text)
	case ok && kind == "file":
		// RFC 8089 knows file:/path and file:///path, with an empty host.
		if rest, ok := strings.CutPrefix(name, "//"); ok {
			name = rest
		}
		p = PINFile(name)
	case ok && kind == "env":
		p = PINEnv(name)
	case ok && kind == "credential":
		p = PINCredential(name)
	default:
		// The text may be a PIN that somebody put in the wrong place: it is not repeated.
		return p, errors.New("hsm: PIN source: write file:/absolute/path, an absolute path, env:NAME, or credential:NAME")
	}
	if err := p.check(); err != nil {
		return PINSource{}, err
	}
	return p, nil
}

// URI writes the part of the configuration that ParseURI reads.
func (c Config) URI() string {
	var b strings.Builder
	b.WriteString("pkcs11:")
	separator := ""
	add := func(sep, name, value, allowed string) {
		if value == "" {
			return
		}
		b.WriteString(separator + name + "=" + escape(value, allowed))
		separator = sep
	}
	add(";", "token", c.TokenLabel, pathChars)
	add(";", "serial", c.TokenSerial, pathChars)
	separator = "?"
	add("&", "module-path", c.Module, queryChars)
	if c.PIN.kind != pinNone {
		add("&", "pin-source", c.PIN.String(), queryChars)
	}
	return b.String()
}

// The characters besides letters and digits that may stand for themselves in values. RFC 7512, 2.3: pk11-pchar and pk11-qchar.
const (
	unreservedChars = "-._~"
	pathChars       = unreservedChars + ":[]@!$'()*+,=&"
	queryChars      = unreservedChars + ":[]@!$'()*+,=/?|"
)

func isAlnum(b byte) bool {
	return '0' <= b && b <= '9' || 'A' <= b && b <= 'Z' || 'a' <= b && b <= 'z'
}

// isAttributeName tells whether the name is made of letters, digits, "-" and "_".
func isAttributeName(name string) bool {
	for i := range len(name) {
		if !isAlnum(name[i]) && name[i] != '-' && name[i] != '_' {
			return false
		}
	}
	return name != ""
}

// unescape decodes percent encoding, and refuses characters that RFC 7512 does not allow unescaped, and zero bytes.
func unescape(s, allowed string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		ch := s[i]
		switch {
		case ch == '%':
			if i+2 >= len(s) || !isHex(s[i+1]) || !isHex(s[i+2]) {
				return "", errors.New("a % is not followed by two hex digits")
			}
			ch = unhex(s[i+1])<<4 | unhex(s[i+2])
			i += 2
			if ch == 0 {
				return "", errors.New("a zero byte is not allowed")
			}
		case !isAlnum(ch) && strings.IndexByte(allowed, ch) < 0:
			return "", fmt.Errorf("the character %q must be written as %%%02X", ch, ch)
		}
		b.WriteByte(ch)
	}
	return b.String(), nil
}

func escape(s, allowed string) string {
	const digits = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		if ch := s[i]; isAlnum(ch) || strings.IndexByte(allowed, ch) >= 0 {
			b.WriteByte(ch)
		} else {
			b.Write([]byte{'%', digits[ch>>4], digits[ch&15]})
		}
	}
	return b.String()
}

func isHex(b byte) bool { return '0' <= b && b <= '9' || 'a' <= b && b <= 'f' || 'A' <= b && b <= 'F' }

func unhex(b byte) byte {
	switch {
	case b <= '9':
		return b - '0'
	case b <= 'F':
		return b - 'A' + 10
	}
	return b - 'a' + 10
}
