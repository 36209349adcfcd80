local state = 42
local function random(limit)
    state = (state * 1103515245 + 12345) & 0x7fffffff
    return (state >> 8) % limit
end

local function digest(text)
    local sum = 5381
    for i = 1, #text, 7 do sum = (sum * 33 + text:byte(i)) & 0xffffffff end
    return sum
end

local map, order = {}, {}
for i = 1, 200000 do
    local key = "key" .. random(40000)
    if map[key] and random(2) == 0 then
        map[key] = nil
    else
        map[key] = { i, ("v"):rep(random(80)), { n = i } }
    end
end
for key in pairs(map) do order[#order + 1] = key end
table.sort(order)
print("keys", #order, digest(table.concat(order, ",")))

local parts = {}
for i = 1, 300000 do parts[#parts + 1] = tostring(i * 7 % 1009) end
local text = table.concat(parts, " ")
print("text", #text, digest(text), select(2, text:gsub("%d+7", "")))

local threads, sum = {}, 0
for i = 1, 20000 do
    threads[i] = coroutine.create(function(a)
        local kept = { a, ("c"):rep(a % 50) }
        local b = coroutine.yield(#kept[2])
        return kept[1] + b
    end)
end
for i = 1, #threads do sum = sum + select(2, coroutine.resume(threads[i], i)) end
for i = #threads, 1, -1 do sum = sum + select(2, coroutine.resume(threads[i], i)) end
print("coroutines", sum)

local function tree(depth)
    if depth == 0 then return {} end
    return { tree(depth - 1), tree(depth - 1) }
end
local function count(node) return node[1] and 1 + count(node[1]) + count(node[2]) or 1 end
for _ = 1, 3 do print("tree", count(tree(16))) collectgarbage() end
