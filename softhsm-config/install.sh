#!/bin/sh
# Installs what Keyhold needs to build and run with SoftHSM2: the SoftHSM2
# library and a C compiler (cgo). Debian/Ubuntu (apt), Fedora/RHEL (dnf),
# Alpine (apk), macOS (brew).
#
#   install.sh           install what is missing; silent when nothing is
#   install.sh --check   only report; exit 1 when something is missing
#
# Root rights: when not root, the exact command is printed first and runs
# through sudo only if KEYHOLD_ALLOW_SUDO=1 or on an interactive "yes".
# Touches no SoftHSM configuration; Keyhold writes its own elsewhere.
# KEYHOLD_SOFTHSM_MODULE names the library when it is in an unusual place.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

say() { printf 'softhsm-config: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# find_module prints the path of the SoftHSM library, or fails.
find_module() {
	if [ -n "${KEYHOLD_SOFTHSM_MODULE:-}" ]; then
		[ -f "$KEYHOLD_SOFTHSM_MODULE" ] || die "KEYHOLD_SOFTHSM_MODULE names $KEYHOLD_SOFTHSM_MODULE, which is not a file; correct it or unset it"
		printf '%s\n' "$KEYHOLD_SOFTHSM_MODULE"
		return 0
	fi
	while IFS= read -r pattern; do
		case $pattern in '' | '#'*) continue ;; esac
		for path in $pattern; do # unquoted: the line is a glob
			if [ -f "$path" ]; then
				printf '%s\n' "$path"
				return 0
			fi
		done
	done <"$here/module-paths.txt"
	return 1
}

# have_compiler tries a real compilation: Debian slim images have had gcc
# without the C library's headers, and then cgo fails far from the cause.
have_compiler() {
	# cgo uses $CC when it is set: another compiler would not help it.
	for cc in "${CC:-cc}" ${CC:+""} gcc clang; do
		[ -n "$cc" ] || return 1 # CC was set and did not work
		# $cc may carry arguments ("ccache gcc"), hence the unquoted uses.
		# shellcheck disable=SC2086
		set -- $cc
		command -v "$1" >/dev/null 2>&1 || continue
		tmp=$(mktemp -d)
		printf '#include <stdlib.h>\nint main(void) { return EXIT_SUCCESS; }\n' >"$tmp/a.c"
		# shellcheck disable=SC2086
		if $cc -o "$tmp/a.out" "$tmp/a.c" >/dev/null 2>&1; then
			rm -rf "$tmp"
			return 0
		fi
		rm -rf "$tmp"
	done
	return 1
}

# as_root runs its arguments with root rights, or says how to and stops.
as_root() {
	if [ "$(id -u)" -eq 0 ]; then
		say "running: $*"
		"$@"
		return
	fi
	say "needs root rights for: $*"
	command -v sudo >/dev/null 2>&1 || die "there is no sudo here; run that command as root, then try again"
	if [ "${KEYHOLD_ALLOW_SUDO:-}" != 1 ]; then
		if ! [ -t 0 ] || ! [ -t 2 ]; then
			die "run it yourself (sudo $*), or set KEYHOLD_ALLOW_SUDO=1 to let this script use sudo"
		fi
		printf 'softhsm-config: run it through sudo now? [yes/no] ' >&2
		read -r answer || answer=no
		[ "$answer" = yes ] || die "not installed; run it yourself: sudo $*"
	fi
	say "running: sudo $*"
	sudo "$@"
}

check_only=no
case ${1:-} in
'') ;;
--check) check_only=yes ;;
*) die "unknown argument $1 (usage: install.sh [--check])" ;;
esac

need=''
if [ -n "${KEYHOLD_SOFTHSM_MODULE:-}" ]; then
	find_module >/dev/null
	module=$KEYHOLD_SOFTHSM_MODULE
else
	module=$(find_module) || { module=''; need=softhsm; }
fi
compiler=yes
if ! have_compiler; then
	compiler=no
	[ -z "${CC:-}" ] || die "CC=$CC does not compile C; correct it or unset it"
	need="$need compiler"
fi

if [ "$check_only" = yes ]; then
	say "SoftHSM2 library: ${module:-missing}"
	say "C compiler: $([ "$compiler" = yes ] && echo works || echo missing)"
	[ -z "$need" ]
	exit
fi
[ -n "$need" ] || exit 0

# packages SOFTHSM COMPILER...: the packages of this system that are missing.
packages() {
	softhsm=$1
	shift
	case $need in *softhsm*) printf '%s ' "$softhsm" ;; esac
	case $need in *compiler*) printf '%s ' "$@" ;; esac
}

say "missing: $(printf '%s' "$need" | sed 's/softhsm/the SoftHSM2 library/; s/ *compiler/ a C compiler/; s/^ //; s/library a C/library and a C/')"
# The package lists are split on purpose.
# shellcheck disable=SC2046
if command -v apt-get >/dev/null 2>&1; then
	set -- $(packages softhsm2 gcc libc6-dev)
	# Slim images come without package lists, and old ones name packages that
	# are gone: update when apt does not know what we want.
	if ! apt-get install --simulate --no-install-recommends "$@" >/dev/null 2>&1; then
		as_root apt-get update -q
	fi
	as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@"
elif command -v dnf >/dev/null 2>&1; then
	as_root dnf install -y $(packages softhsm gcc glibc-devel)
elif command -v apk >/dev/null 2>&1; then
	as_root apk add --no-cache $(packages softhsm gcc musl-dev)
elif command -v brew >/dev/null 2>&1; then
	case $need in *softhsm*)
		# brew refuses root and needs no root rights.
		say "running: brew install softhsm"
		brew install softhsm
		;;
	esac
	case $need in *compiler*) die "install Apple's command line tools: xcode-select --install" ;; esac
else
	die "no apt-get, dnf, apk or brew here: install SoftHSM2 and a C compiler yourself (and set KEYHOLD_SOFTHSM_MODULE if the library is in an unusual place)"
fi

[ -n "$module" ] || module=$(find_module) || die "SoftHSM2 was installed but its library was not found in the places of $here/module-paths.txt; set KEYHOLD_SOFTHSM_MODULE to its path"
have_compiler || die "a C compiler was installed but does not work; try: cc --version"
say "ready: $module"
