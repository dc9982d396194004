# The tests of jails: what one looks like, attacks on it, beginning and end, machines that are handed from one to another.
for part in layout attacks life readme clones; do
    tests v2-jail-$part jail::$part
done
