# Tables, closures and strings.
# needs: lua5.4
case $1 in
prepare)
    cat >work.lua <<'END'
local function tree(depth) return depth > 0 and { left = tree(depth - 1), right = tree(depth - 1) } or {} end
local function count(t) return t.left and 1 + count(t.left) + count(t.right) or 1 end
local total = 0
for round = 1, 6 do total = total + count(tree(15)) end
local words, seed = {}, 1
for i = 1, 400000 do
    seed = (seed * 1103515245 + 12345) % 2147483648
    local key = "word" .. seed % 50000
    words[key] = (words[key] or "") .. string.char(97 + seed % 26)
    if #words[key] > 40 then words[key] = nil end
end
local list = {}
for key, value in pairs(words) do list[#list + 1] = key .. "=" .. value end
table.sort(list)
print(total, #table.concat(list, ","))
END
    ;;
run)
    $MEASURE lua5.4 work.lua
    ;;
esac
