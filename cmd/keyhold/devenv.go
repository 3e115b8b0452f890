package main

import (
	"fmt"
	"os"
	"strings"
)

// readDevEnv reads the file that `keyholdd dev` wrote. It decides where
// plaintext is sent, and it is found by nothing but standing in its folder: so
// it must be a plain file that belongs to the caller and that nobody else may
// write.
func readDevEnv(path string) (map[string]string, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() { // opening a pipe would wait
		return nil, fmt.Errorf("%s is not used: it is not a plain file", path)
	}
	raw, err := readSmallFile(path, ownedByCaller)
	if err != nil {
		return nil, fmt.Errorf("%s is not used: %w", path, err)
	}
	vars, err := parseEnvFile(string(raw))
	if err != nil {
		return nil, fmt.Errorf("%s is not used: %w", path, err)
	}
	return vars, nil
}

// parseEnvFile reads lines NAME=value, as a shell would that sources them:
// values may stand in single or double quotes. Nothing is expanded. Empty
// lines and comments are skipped; everything else is refused.
func parseEnvFile(text string) (map[string]string, error) {
	vars := map[string]string{}
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSuffix(line, "\r")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, quoted, ok := strings.Cut(strings.TrimPrefix(line, "export "), "=")
		if !ok || !isEnvName(name) {
			return nil, fmt.Errorf("line %d is not NAME=value", i+1)
		}
		val, err := unquoteShell(quoted)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
		vars[name] = val
	}
	return vars, nil
}

func isEnvName(s string) bool {
	for i := range len(s) {
		c := s[i]
		letter := c == '_' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

// unquoteShell undoes the quotes of one word. It refuses what a shell would
// expand, split or continue: then the shell and this program would differ.
func unquoteShell(s string) (string, error) {
	var b strings.Builder
	for s != "" {
		switch c := s[0]; {
		case c == '\'' || c == '"':
			end := strings.IndexByte(s[1:], c)
			if end < 0 {
				return "", fmt.Errorf("a quote %c is not closed", c)
			}
			part := s[1 : 1+end]
			if c == '"' && strings.ContainsAny(part, "$`\\") {
				return "", fmt.Errorf("one of $ ` \\ stands in double quotes")
			}
			b.WriteString(part)
			s = s[end+2:]
		case c == '\\' && len(s) > 1:
			b.WriteByte(s[1])
			s = s[2:]
		case strings.IndexByte(" \t$`\\&|;<>()*?[]{}!#~", c) >= 0:
			return "", fmt.Errorf("the value has %q outside of quotes", c)
		default:
			b.WriteByte(c)
			s = s[1:]
		}
	}
	return b.String(), nil
}

// quoteShell writes s so that a POSIX shell reads it back as it is.
func quoteShell(s string) string {
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
