# Sourced by the shell clients: says what was expected and what came, and counts.
# shellcheck shell=bash

passed=0

# pass NAME: one more step that did as etcd does.
pass() {
    echo "ok $1"
    passed=$((passed + 1))
}

# equals NAME EXPECTED ACTUAL
equals() {
    if [[ $2 != "$3" ]]; then
        printf 'not as etcd does it: %s\n--- expected\n%s\n--- got\n%s\n' "$1" "$2" "$3" >&2
        exit 1
    fi
}

# contains NAME PART ACTUAL
contains() {
    if [[ $3 != *"$2"* ]]; then
        printf 'not as etcd does it: %s\n--- expected somewhere\n%s\n--- got\n%s\n' "$1" "$2" "$3" >&2
        exit 1
    fi
}

# fails_with NAME PART COMMAND...: the command must fail, with the part in what it prints.
fails_with() {
    local name=$1 part=$2 output
    shift 2
    if output=$("$@" 2>&1); then
        printf 'not as etcd does it: %s: succeeded with\n%s\n' "$name" "$output" >&2
        exit 1
    fi
    contains "$name" "$part" "$output"
}

# wait_for FILE COUNT: until the file has that many lines, at most 10 s.
wait_for() {
    local deadline=$((SECONDS + 10))
    until (($(wc -l <"$1") >= $2)); do
        if ((SECONDS > deadline)); then
            printf 'waited in vain for %d lines, got\n%s\n' "$2" "$(cat "$1")" >&2
            exit 1
        fi
        sleep 0.05
    done
}
