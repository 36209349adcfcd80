# Builds the program NAME as `on-system` and, with slabwright inlined, as `on-slabwright`, in the current directory: sh build.sh NAME
for kind in system slabwright; do
    features=
    [ $kind = system ] || features="--features slabwright"
    (cd "$ROOT" && cargo build --quiet --profile bench --package slabwright-bench-programs --bin "$1" $features) || exit
    cp "$TARGET/release/$1" "on-$kind" || exit
done
