# The tests of jails, as they run on the host, here where control groups are of version 2.
# tests CASE ARGUMENT...: runs those that the arguments choose. One that fails is told with what it said.
tests() {
    tests_case=$1
    shift
    MAYFLY_BIN=/bin/mayfly timeout 290 security --test-threads 1 "$@" 2>&1 | tee tests.out
    passed=$(sed -n 's/^test result: ok\. \([0-9]*\) passed; 0 failed; 0 ignored.*/\1/p' tests.out)
    check "$tests_case" "see above" [ "${passed:-0}" -gt 0 ]
}
for part in layout attacks readme; do
    tests v2-jail-$part jail::$part
done
