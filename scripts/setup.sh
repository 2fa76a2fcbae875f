#!/bin/bash
# Installs what building, testing (procps: pkill) and the quickstart (bible-kjv: its text) need, with apt, as root or
# through sudo. Does nothing, in well under a second, when everything is there.
#     scripts/setup.sh [--fuzz] [--help]      --fuzz: also clang and its libraries, for `make fuzz`
set -u
packages=(build-essential libcjson-dev libinih-dev libzstd-dev zlib1g-dev libxxhash-dev libcmocka-dev
    bible-kjv bible-kjv-text procps)
for word in "$@"; do
    case $word in
    --fuzz) packages+=(clang libclang-rt-dev libomp-dev) ;;
    --help | -h)
        sed -n '2,4s/^# \{0,1\}//p' "$0"
        echo "packages: ${packages[*]}"
        exit 0
        ;;
    *)
        echo "scripts/setup.sh: unknown option '$word': expected --fuzz or --help" >&2
        exit 2
        ;;
    esac
done

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    # The Makefile looks for the libraries themselves; here nothing can be looked up.
    echo "scripts/setup.sh: this is not a Debian system, so nothing is installed. Needed are gcc, make and the development" \
        "files of cJSON, inih, zstd, zlib, xxHash and cmocka (on Debian: ${packages[*]})." >&2
    exit 0
fi

missing=()
installed=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${packages[@]}" 2>/dev/null)
for package in "${packages[@]}"; do
    grep -qx "$package installed" <<<"$installed" || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "scripts/setup.sh: cannot install ${missing[*]}: this is neither root nor is there sudo. Ask an administrator" \
            "to run: apt-get install ${missing[*]}" >&2
        exit 1
    fi
    as_root=(sudo)
    # Without a terminal nobody can type a password.
    [ -t 0 ] || as_root=(sudo -n)
fi

echo "installing ${missing[*]}"
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q "$@" </dev/null >>"$log" 2>&1; }
if ! { apt update && apt install -y --no-install-recommends "${missing[@]}"; }; then
    tail -n 15 "$log" >&2
    echo "scripts/setup.sh: apt-get could not install ${missing[*]} (its last words are above). Check the network and" \
        "/etc/apt/sources.list, or install them by hand." >&2
    exit 1
fi
