#!/bin/sh
# Installs the clients that interop's tests run and that are no Go libraries: AWS
# CLI, boto3 (for the python3 of the system), curl, Node.js with the packages of
# interop/js, and sops. Debian/Ubuntu (apt). Node's packages and sops, built from
# its source, go to .gen/interop of this repository.
#
#   install.sh           install what is missing; silent when nothing is
#   install.sh --check   only report; exit 1 when something is missing
#
# Root rights: when not root, the exact command is printed, and runs through
# sudo only if KEYHOLD_ALLOW_SUDO=1.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
out=$here/../.gen/interop
# What @aws-sdk/client-kms needs.
node_major=20

say() { printf 'interop: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# The tests look for programs here first, too: Debian's python3 packages are for
# Debian's python3.
PATH=/usr/bin:/bin:$PATH

have_python() {
	python3 -c 'import boto3, cryptography' >/dev/null 2>&1
}

# have_cli tells whether there is an AWS CLI. CI takes Debian's.
have_cli() {
	if [ -n "${CI:-}" ]; then [ -x /usr/bin/aws ]; else command -v aws >/dev/null 2>&1; fi
}

have_node() {
	command -v npm >/dev/null 2>&1 && command -v node >/dev/null 2>&1
}

# have_modules tells whether Node's packages are those of the lock file.
have_modules() {
	cmp -s "$here/js/package-lock.json" "$out/installed-lock.json"
}

check_only=no
case ${1:-} in
'') ;;
--check) check_only=yes ;;
*) die "unknown argument $1 (usage: install.sh [--check])" ;;
esac

need=''
have_python || need="$need python3-boto3 python3-cryptography"
have_cli || need="$need awscli"
command -v curl >/dev/null 2>&1 || need="$need curl"
command -v jq >/dev/null 2>&1 || need="$need jq"
command -v openssl >/dev/null 2>&1 || need="$need openssl"
have_node || need="$need nodejs npm"
if [ "$check_only" = yes ]; then
	[ -x "$out/bin/sops" ] || need="$need sops"
	have_modules || need="$need interop/js"
	if [ -z "$need" ]; then exit 0; fi
	say "missing:$need"
	exit 1
fi

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

# install_packages installs its arguments. Slim images come without package lists,
# and old ones name packages that are gone.
install_packages() {
	say "missing: $*"
	command -v apt-get >/dev/null 2>&1 || die "there is no apt-get here: install them yourself"
	if ! apt-get install --simulate --no-install-recommends "$@" >/dev/null 2>&1; then
		as_root apt-get update -q
	fi
	as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@"
}

# $need is split on purpose.
# shellcheck disable=SC2086
[ -z "$need" ] || install_packages $need
have_python || die "python3-boto3 was installed but python3 does not find it"
version=$(node --version)
major=${version#v}
[ "${major%%.*}" -ge "$node_major" ] || die "Node.js $version is too old for @aws-sdk/client-kms: install version $node_major or later"

mkdir -p "$out"
if ! have_modules; then
	say "installing Node's packages"
	cp "$here/js/package.json" "$here/js/package-lock.json" "$out/"
	# No package's scripts are run; all are checked against the lock file.
	npm ci --prefix "$out" --ignore-scripts --no-audit --no-fund --loglevel=error >&2
	cp "$here/js/package-lock.json" "$out/installed-lock.json"
fi
# Go builds again only what has changed.
"${GO:-go}" build -C "$here/sops" -ldflags '-s -w' -o ../../.gen/interop/bin/sops github.com/getsops/sops/v3/cmd/sops
