# The tests of jails: what one looks like, and attacks on it.
for part in layout attacks readme; do
    tests v2-jail-$part jail::$part
done
