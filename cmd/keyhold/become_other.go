//go:build !unix

package main

import "errors"

// become cannot be done here.
func become(string, []string, []string) error {
	return errors.New("this system cannot run a program in place of another")
}
