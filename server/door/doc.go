// Package door is what the doors that clients come in through have in common:
// listeners with a bound on connections, certificates that are read again, logs
// that cannot be flooded, and a bound on how many failed authentications are told
// why. It knows nothing of protocols.
package door
