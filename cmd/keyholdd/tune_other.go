//go:build !linux

package main

func tune() {}
