#!/bin/sh
# Installs the clients that interop's tests run and that are no Go modules:
# botocore (for the python3 of the system) and curl. Debian/Ubuntu (apt).
#
#   install.sh           install what is missing; silent when nothing is
#   install.sh --check   only report; exit 1 when something is missing
#
# Root rights: when not root, the exact command is printed, and runs through
# sudo only if KEYHOLD_ALLOW_SUDO=1.
set -eu

say() { printf 'interop: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

have_botocore() {
	for python in /usr/bin/python3 python3; do
		if "$python" -c 'import botocore' >/dev/null 2>&1; then return 0; fi
	done
	return 1
}

check_only=no
case ${1:-} in
'') ;;
--check) check_only=yes ;;
*) die "unknown argument $1 (usage: install.sh [--check])" ;;
esac

need=''
have_botocore || need="$need python3-botocore"
command -v curl >/dev/null 2>&1 || need="$need curl"
if [ -z "$need" ]; then exit 0; fi
say "missing:$need"
[ "$check_only" = no ] || exit 1
command -v apt-get >/dev/null 2>&1 || die "there is no apt-get here: install them yourself (botocore: pip install botocore)"

# as_root runs its arguments with root rights, or says how to and stops.
as_root() {
	if [ "$(id -u)" -eq 0 ]; then
		say "running: $*"
		"$@"
		return
	fi
	[ "${KEYHOLD_ALLOW_SUDO:-}" = 1 ] || die "run it yourself (sudo $*), or set KEYHOLD_ALLOW_SUDO=1 to let this script use sudo"
	say "running: sudo $*"
	sudo "$@"
}

# Slim images come without package lists, and old ones name packages that are
# gone. $need is split on purpose.
# shellcheck disable=SC2086
if ! apt-get install --simulate --no-install-recommends $need >/dev/null 2>&1; then
	as_root apt-get update -q
fi
# shellcheck disable=SC2086
as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $need
have_botocore || die "python3-botocore was installed but python3 does not find it"
