#!/bin/sh
# Asks a running endpoint whether it is the one of this folder: that it gets ready, refuses a wrong key, lists its models,
# and that every one of them answers, held to the adapter's schema where it has one. Written by `wardrobe deploy`.
#
#   smoke-test.sh [URL]
#
# Environment:
#   WARDROBE_API_KEY  the key [default: the first one in api-key beside this script]
#   WAIT_SECONDS      how long the endpoint may take to get ready [default: 300]
#   ANSWER_SECONDS    how long an answer may take [default: 120]
#
# Needs curl. With jq or python3 answers are read as JSON too. Exit code 0 if all is as it should be.
set -eu

default_url=@URL@
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
url=${1:-$default_url}
url=${url%/}
wait_seconds=${WAIT_SECONDS:-300}
answer_seconds=${ANSWER_SECONDS:-120}

fail() {
    printf 'FAILED: %s\n' "$1" >&2
    exit 1
}

passed() {
    printf 'ok: %s\n' "$1"
}

for number in "$wait_seconds" "$answer_seconds"; do
    case $number in
    '' | *[!0-9]*) fail "WAIT_SECONDS and ANSWER_SECONDS are whole numbers, not \"$number\"" ;;
    esac
done
command -v curl > /dev/null 2>&1 || fail "curl is not installed"
key=${WARDROBE_API_KEY:-}
if [ -z "$key" ]; then
    [ -r "$here/api-key" ] || fail "cannot read $here/api-key; set WARDROBE_API_KEY"
    key=$(sed -e 's/^[[:space:]]*//' -e 's/[[:space:]]*$//' -e '/^#/d' -e '/^$/d' "$here/api-key" | head -n 1)
    [ -n "$key" ] || fail "$here/api-key holds no key"
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# authorize NAME KEY: a file for curl, since everybody on the machine can read a command's arguments.
authorize() {
    escaped=$(printf '%s' "$2" | sed -e 's/[\\"]/\\&/g')
    (umask 077 && printf 'header = "Authorization: Bearer %s"\n' "$escaped" > "$work/$1")
}
authorize right "$key"
authorize wrong "not-$key"

# ask KEY SECONDS PATH [BODY]: leaves the status in $status (000 if there is no answer) and the answer in $work/answer.
ask() {
    with=$1
    seconds=$2
    path=$3
    shift 3
    if [ $# -gt 0 ]; then
        printf '%s' "$1" > "$work/body"
        set -- --header 'Content-Type: application/json' --data-binary "@$work/body"
    fi
    : > "$work/answer"
    status=$(curl -q --silent --show-error --noproxy '*' --max-time "$seconds" --config "$work/$with" \
        --output "$work/answer" --write-out '%{http_code}' "$@" "$url$path" 2> "$work/error") || status=000
}

said() {
    if [ "$status" = 000 ]; then cat "$work/error"; else head -c 500 "$work/answer"; fi
}

# is_json KIND [PROPERTY]...: whether the answer's text is JSON of this kind (object or any) that has the properties.
is_json() {
    kind=$1
    shift
    if command -v jq > /dev/null 2>&1; then
        # The program's variables are jq's.
        # shellcheck disable=SC2016
        jq --exit-status --arg kind "$kind" '
            .choices[0] | (.message.content // .text) | fromjson | . as $value
            | $kind == "any" or (type == "object" and all($ARGS.positional[]; . as $key | $value | has($key)))
            ' "$work/answer" --args "$@" > /dev/null 2>&1
    elif command -v python3 > /dev/null 2>&1; then
        python3 -c '
import json, sys
path, kind, *keys = sys.argv[1:]
choice = json.load(open(path, encoding="utf-8"))["choices"][0]
value = json.loads(choice["message"]["content"] if "message" in choice else choice["text"])
sys.exit(not (kind == "any" or isinstance(value, dict) and all(key in value for key in keys)))
' "$work/answer" "$kind" "$@" 2> /dev/null
    else
        echo "SKIPPED: whether the answer is JSON with these properties, for want of jq and python3: $*" >&2
    fi
}

# answers NAME MARK BODY: one request, whose answer has to be of the model NAME.
answers() {
    ask right "$answer_seconds" @ROUTE@ "$3"
    [ "$status" = 200 ] || fail "$1 does not answer (status $status): $(said)"
    grep -qF -e "$2" "$work/answer" || fail "$1: the answer is another model's: $(said)"
    passed "$1 answers"
}

deadline=$(($(date +%s) + wait_seconds))
while :; do
    ask right 10 /ready
    case $status in
    200) break ;;
    401) fail "$url refuses the key" ;;
    esac
    [ "$(date +%s)" -lt "$deadline" ] || fail "$url is not ready after $wait_seconds s (status $status): $(said)"
    sleep 1
done
passed "$url is ready"

ask wrong 10 /v1/models
[ "$status" = 401 ] || fail "a wrong key gets status $status instead of 401: $(said)"
passed "a wrong key is refused"

ask right 10 /v1/models
[ "$status" = 200 ] || fail "the list of models has status $status: $(said)"
# lists NAME MARK
lists() {
    grep -qF -e "$2" "$work/answer" || fail "$1 is not in the list of models: $(said)"
    passed "$1 is listed"
}
