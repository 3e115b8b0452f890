//go:build darwin || dragonfly || freebsd || netbsd || openbsd

package main

import "golang.org/x/sys/unix"

// getTermios is the ioctl that only terminals answer.
const getTermios = unix.TIOCGETA
