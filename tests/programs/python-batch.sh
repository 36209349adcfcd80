# Runs test modules together; if that fails, each alone, twice at most, since some depend on time.
dir=$(mktemp -d)
cd "$dir"
export TMPDIR="$dir"
if python3 -m test -q "$@" >log 2>&1 </dev/null; then
    for module; do echo "$module ok"; done
else
    for module; do
        if python3 -m test -q "$module" >>log 2>&1 </dev/null || python3 -m test -q "$module" >>log 2>&1 </dev/null; then
            echo "$module ok"
        else
            echo "$module FAILED"
        fi
    done
fi
exit 0
