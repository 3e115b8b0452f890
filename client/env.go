package client

import "os"

// ConfigFromEnv returns the connection that the environment describes, in the
// variables that the keyhold tool reads too and `keyholdd dev` writes to
// dev.env: KEYHOLD_ADDR, KEYHOLD_CA, KEYHOLD_CERT, KEYHOLD_KEY,
// KEYHOLD_SERVER_NAME and KEYHOLD_REGION. What is missing shows at Dial.
func ConfigFromEnv() Config {
	return Config{
		Addr:       os.Getenv("KEYHOLD_ADDR"),
		CAFile:     os.Getenv("KEYHOLD_CA"),
		CertFile:   os.Getenv("KEYHOLD_CERT"),
		KeyFile:    os.Getenv("KEYHOLD_KEY"),
		ServerName: os.Getenv("KEYHOLD_SERVER_NAME"),
		Region:     os.Getenv("KEYHOLD_REGION"),
	}
}
