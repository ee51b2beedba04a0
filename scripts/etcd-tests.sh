#!/usr/bin/env bash
# Runs etcd's own suites (the packages common and e2e of the module
# go.etcd.io/etcd/tests/v3, at the version of tests/reference) with stele standing
# where they look for etcd; etcdctl and etcdutl are the reference's.
#
#   scripts/etcd-tests.sh REFERENCE    the directory of `make reference`
#
# Each test is a process of its own in a network and a process namespace of its own:
# it reaches nothing but itself, its ports are free, and what it leaves running ends
# with it. tests/etcd/expected.tsv says what is expected to fail, and why. The run
# fails when something else does, and says what passes against expectation.
#
# STELE_ETCD_TESTS          only tests whose package/name matches this extended regular
#                           expression, such as 'common/TestKV' or 'AutoTLS'
# STELE_ETCD_TESTS_SECONDS  longest time for one test (default 300)
# STELE_BINARY              another build, or real etcd, which is how the list's
#                           entries "with etcd too" are checked
# STELE_EXPECTED            another list of expectations, /dev/null for none
#
# Each test's output, its servers' logs included, is kept in etcd-tests/logs below
# the target directory.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/.." && pwd)
source "$here/apt.sh"
reference=$(cd "${1:?the directory of real etcd, etcdctl and etcdutl}" && pwd)
target=${CARGO_TARGET_DIR:-$repository/target}
server=${STELE_BINARY:-$target/release/stele}
expected=${STELE_EXPECTED:-$repository/tests/etcd/expected.tsv}
only=${STELE_ETCD_TESTS:-.}
# The longest of them take three minutes with etcd on two cores; a hundred seconds
# are what etcd's framework itself grants to a step.
seconds=${STELE_ETCD_TESTS_SECONDS:-300}
PACKAGES=(common e2e)
version=$(sed -n 's/.*go\.etcd\.io\/etcd\/server\/v3 \(v[0-9.]*\).*/\1/p' "$repository/tests/reference/go.mod")
work=$target/etcd-tests
suite=$work/$version
logs=$work/logs

die() {
    echo "etcd-tests.sh: $*" >&2
    exit 1
}

# The suites' folder as etcd's repository has it: tests beside bin. It is a copy since
# tests put sockets and files beside themselves. A module's archive keeps the
# directives by which etcd's repository refers to its own folders, which are not there.
fetch_suite() {
    [[ -d $suite/tests ]] && return
    local archive copy=$suite/fetched
    archive=$(go mod download -json "go.etcd.io/etcd/tests/v3@$version" |
        sed -n 's/^\t"Dir": "\(.*\)",\{0,1\}$/\1/p')
    [[ -n $archive ]] || die "could not fetch go.etcd.io/etcd/tests/v3@$version"
    rm -rf "$copy"
    mkdir -p "$suite"
    cp -r "$archive" "$copy"
    chmod -R u+w "$copy"
    local folder
    while read -r folder; do
        (cd "$copy" && go mod edit -dropreplace="$folder")
    done < <(sed -n 's/^\t\(go\.etcd\.io[^ ]*\) => .*/\1/p' "$copy/go.mod")
    (cd "$copy" && go mod edit -toolchain=none)
    # The sums of etcd's own modules, as far as the reference has noted them.
    cat "$repository/tests/reference/go.sum" >>"$copy/go.sum"
    mv "$copy" "$suite/tests"
}

compile() {
    local package
    for package in "${PACKAGES[@]}"; do
        (cd "$suite/tests" && CGO_ENABLED=0 GOFLAGS="${GOFLAGS:-} -mod=mod" \
            go test -c -tags e2e -o "$suite/$package.test" "./$package")
    done
    mkdir -p "$suite/bin"
    # A copy: a build in the meantime must not change what is tested.
    cp --remove-destination "$server" "$suite/bin/etcd"
    cp --remove-destination "$reference/etcdctl" "$reference/etcdutl" "$suite/bin/"
}

list_tests() {
    local package
    for package in "${PACKAGES[@]}"; do
        (cd "$suite/tests/$package" && "$suite/$package.test" -test.list .) |
            sed -n "s/^Test/$package\/&/p"
    done
}

# Nothing but loopback, with an address beside 127.0.0.1 that the tests find by asking
# for the way to a host far away: for them the way to everywhere begins and ends here.
# A name server would be asked in vain for five seconds: with none named, each
# question about a name fails at once.
NAMESPACE='ip link set lo up
ip address add 192.0.2.1/32 dev lo
ip route add default dev lo src 192.0.2.1
mount --bind /dev/null /etc/resolv.conf
exec "$@"'
# isolated COMMAND...: in that namespace. The end of the first process is the end of all.
isolated() {
    local as_root=()
    ((EUID == 0)) || as_root=(--user --map-root-user)
    unshare "${as_root[@]}" --net --pid --fork --kill-child --mount-proc bash -e -c "$NAMESPACE" - "$@"
}

# run_one PACKAGE TEST LOG: the test's output into the log, which says how it ended.
run_one() {
    local package=$1 test=$2 log=$3
    mkdir "$scratch/tmp"
    (
        cd "$suite/tests/$package"
        # Data of servers that were told no directory.
        rm -rf ./*.etcd ./*.stele
        # The marks of test2json tell what the test framework says from what servers say.
        # The limit is the framework's, which shows what each goroutine waits for.
        TMPDIR=$scratch/tmp EXPECT_DEBUG=true isolated timeout --signal KILL $((seconds + 30)) \
            "$suite/$package.test" -test.v=test2json -test.run "^$test\$" -test.timeout "${seconds}s"
    ) >"$log" 2>&1 </dev/null || echo "ended with status $?" >>"$log"
    rm -rf "$scratch/tmp"
}

# verdicts TEST LOG: "skipped", or each test and subtest that failed by itself and not
# through one below it. A test that has not come to its end has failed. What the
# process ends with adds nothing but a search for goroutines that are left, which
# is for a whole suite: after a lone test some are about to end.
verdicts() {
    awk -v test="$1" '
        match($0, /\026 *--- (PASS|FAIL|SKIP): [^ ]+ \(/) {
            split(substr($0, RSTART, RLENGTH), words, /--- |: | \(/)
            said[words[3]] = words[2]
        }
        END {
            if (said[test] == "SKIP") { print "skipped"; exit }
            if (said[test] == "") print test
            for (name in said)
                for (parent = name; sub(/\/[^\/]*$/, "", parent);)
                    if (said[name] == "FAIL") blames_child[parent] = 1
            for (name in said)
                if (said[name] == "FAIL" && !(name in blames_child)) print name
        }' "$2" | sort
}

# may_fail NAME: whether the list has that name, or one it lies below.
may_fail() {
    local name=$1
    until [[ -n ${list[$name]:-} ]]; do
        [[ $name == */*/* ]] || return
        name=${name%/*}
    done
}

read_list() {
    local name kind reason number=0 known
    known=$'\n'$(list_tests)$'\n'
    while IFS=$'\t' read -r name kind reason; do
        number=$((number + 1))
        [[ -z $name || $name == \#* ]] && continue
        [[ $kind =~ ^(fails|unsteady|skip)$ && -n $reason ]] ||
            die "$expected:$number: not name, fails or unsteady or skip, reason"
        [[ $known == *$'\n'$(cut -d / -f 1-2 <<<"$name")$'\n'* ]] ||
            die "$expected:$number: there is no test $name"
        list[$name]=$kind
    done <"$expected"
}

# judge PACKAGE TEST LOG: compares what failed with the list; counts, and prints a line.
judge() {
    local package=$1 test=$2 log=$3
    local name failures=() unexpected=() well=() said
    mapfile -t failures < <(verdicts "$test" "$log")
    if [[ ${failures[*]} == skipped ]]; then
        skipped=$((skipped + 1))
        said="skipped by itself"
    else
        for name in "${failures[@]}"; do
            may_fail "$package/$name" || unexpected+=("$package/$name")
        done
        for name in "${!list[@]}"; do
            [[ $name/ == "$package/$test"/* && ${list[$name]} == fails ]] || continue
            [[ " ${failures[*]/#/$package/} " == *" $name"[\ /]* ]] || well+=("$name")
        done
        if ((${#unexpected[@]} > 0)); then
            failed=$((failed + 1))
            surprises+=("failed ($log):" "${unexpected[@]/#/    }")
            said=FAILED
        elif ((${#failures[@]} > 0)); then
            known=$((known + 1))
            said="failed as expected"
        else
            passed=$((passed + 1))
            said=passed
        fi
        ((${#well[@]} == 0)) || surprises+=("passed against expectation:" "${well[@]/#/    }")
    fi
    printf '%s/%s: %s, %d s\n' "$package" "$test" "$said" $((SECONDS - begun))
}

[[ -x $server ]] || die "there is no server at $server (cargo build --release makes it)"
missing=()
command -v ip >/dev/null || missing+=(iproute2)
command -v curl >/dev/null || missing+=(curl)
install_packages "${missing[@]}"
isolated true || die "no namespaces can be made here, as the tests need"
for name in "${!ETCD@}"; do unset "$name"; done
fetch_suite
compile
declare -A list
read_list
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

passed=0 failed=0 skipped=0 known=0
surprises=()
mapfile -t tests < <(list_tests | grep -E -- "$only")
((${#tests[@]} > 0)) || die "no test matches $only"
for test in "${tests[@]}"; do
    begun=$SECONDS
    log=$logs/$test.log
    mkdir -p "${log%/*}"
    if [[ ${list[$test]:-} == skip ]]; then
        skipped=$((skipped + 1))
        printf '%s: skipped by the list\n' "$test"
        continue
    fi
    run_one "${test%%/*}" "${test#*/}" "$log"
    judge "${test%%/*}" "${test#*/}" "$log"
done

((${#surprises[@]} == 0)) || printf '%s\n' "" "${surprises[@]}"
printf '\n%d failed as %s says\n' "$known" "${expected#"$repository/"}"
printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
((failed == 0))
