#!/usr/bin/env bash
# Runs the README's tours: each sh block between the two marks, in one shell, and
# compares what it prints with the text block that follows. The server must be a
# new one, since revisions are part of the output. The tour of a cluster starts its own
# members from STELE_SERVER, on ports of its own.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/../check.sh"
readme=$here/../../../README.md
endpoint=${STELE_ENDPOINT:-localhost:2379}
export ETCDCTL_ENDPOINTS=$endpoint
# The members of a tour that has failed.
trap 'jobs -p | xargs --no-run-if-empty kill 2>/dev/null || true' EXIT

kind='' block='' commands='' in_tour=false
while IFS= read -r line; do
    case $line in
    '<!-- tour'*) in_tour=true ;;
    '<!-- end of the tour'*) in_tour=false ;;
    '```'?*) kind=${line#'```'} block='' ;;
    '```')
        if $in_tour && [[ $kind == sh ]]; then
            commands=${block//localhost:2379/$endpoint}
            commands=${commands//target\/release\/stele/$STELE_SERVER}
        elif $in_tour && [[ $kind == text ]]; then
            # In this shell, not in a subshell: a later block uses the variables of an earlier one.
            output=$(mktemp)
            eval "$commands" >"$output" </dev/null
            # The dot keeps empty lines at the end.
            equals "$commands" "$block." "$(cat "$output"; echo .)"
            rm "$output"
            pass "${commands%%$'\n'*}"
        fi
        kind=''
        ;;
    *) [[ -z $kind ]] || block+=$line$'\n' ;;
    esac
done <"$readme"
((passed > 0))
echo "the README's tours: $passed steps passed"
