package main

import (
	"errors"

	"github.com/spf13/cobra"
)

func doctorCommand() *cobra.Command {
	return &cobra.Command{Use: "doctor", RunE: func(*cobra.Command, []string) error { return errors.New("in the making") }}
}

func witnessCommand() *cobra.Command {
	return &cobra.Command{Use: "witness", Hidden: true, RunE: func(*cobra.Command, []string) error { return errors.New("in the making") }}
}
