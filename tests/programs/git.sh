# git: a repository of many commits, branches and merges; gc, repack, fsck, blame, bundle, clone.
# needs: git perl
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_NAME=c GIT_COMMITTER_EMAIL=c@example.org
export GIT_CONFIG_NOSYSTEM=1
perl "$HERE/history.pl" 1500 60 >stream 2>/dev/null
git init --quiet --initial-branch=main repository 2>>served
cd repository
git config gc.auto 0
git config pack.threads 2
git fast-import --quiet <../stream 2>>../served
git checkout --quiet main 2>>../served
for round in 1 2 3; do
    git checkout --quiet -b side$round HEAD~5$round 2>>../served
    echo "side $round" >side-$round.txt
    git add . 2>>../served
    GIT_AUTHOR_DATE="150000000$round +0000" GIT_COMMITTER_DATE="150000000$round +0000" git commit --quiet -m "side $round" 2>>../served
    git checkout --quiet main 2>>../served
    GIT_AUTHOR_DATE="151000000$round +0000" GIT_COMMITTER_DATE="151000000$round +0000" \
        git merge --quiet --no-edit side$round 2>>../served
done
git gc --quiet --prune=now 2>>../served
git repack -a -d -f --quiet --depth=50 --window=50 2>>../served
git fsck --full --strict --no-progress 2>>../served
git rev-list --all --objects 2>>../served | sort | sha1sum
git log --stat -p --all --format=fuller 2>>../served | sha1sum
git blame file-7.txt 2>>../served | sha1sum
git diff HEAD~300 HEAD 2>>../served | sha1sum
git grep -c 'line 1' 2>>../served | sha1sum
git bundle create --quiet ../bundle --all 2>>../served
git clone --quiet ../bundle ../copy 2>>../served
cd ../copy
git rev-parse HEAD 2>>../served
git archive HEAD 2>>../served | sha1sum
