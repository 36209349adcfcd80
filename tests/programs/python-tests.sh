# Modules of Python's own test suite (python-tests.txt), those that pass anywhere and take seconds at most.
# needs: python3
# limit: 900
# modes: default verify
# alone
# Python keeps small objects in pools of its own, unless it is told not to.
export PYTHONMALLOC=malloc
python3 -m test -q test_dict >log 2>>served
# Many tests want the error output of the interpreters they start to be empty.
unset SLABWRIGHT_STATS
tr ' ' '\n' <"$HERE/python-tests.txt" | xargs -P "$(nproc)" -n 10 sh "$HERE/python-batch" | sort >results
cat results
test "$(grep -c ok results)" -ge 200
