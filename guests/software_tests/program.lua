-- Loops that a tracing compiler makes hot.
local bit, ffi = require("bit"), require("ffi")
local function mandelbrot(n)
    local inside = 0
    for py = 0, n - 1 do
        for px = 0, n - 1 do
            local cx, cy, x, y, i = px / n * 3 - 2, py / n * 2 - 1, 0.0, 0.0, 0
            while x * x + y * y < 4 and i < 60 do
                x, y = x * x - y * y + cx, 2 * x * y + cy
                i = i + 1
            end
            if i == 60 then inside = inside + 1 end
        end
    end
    return inside
end
local function sieve(n)
    local composite, count = ffi.new("uint8_t[?]", n + 1), 0
    for i = 2, n do
        if composite[i] == 0 then
            count = count + 1
            for j = i * i, n, i do composite[j] = 1 end
        end
    end
    return count
end
local function hash(n)
    local h = 0x811c9dc5
    for i = 1, n do h = bit.tobit(bit.bxor(bit.rol(h, 5), i * 31) + i) end
    return bit.tohex(h)
end
local function queens(n)
    local count, columns, up, down = 0, {}, {}, {}
    local function place(row)
        if row > n then count = count + 1 return end
        for c = 1, n do
            if not (columns[c] or up[row + c] or down[row - c + n]) then
                columns[c], up[row + c], down[row - c + n] = true, true, true
                place(row + 1)
                columns[c], up[row + c], down[row - c + n] = nil, nil, nil
            end
        end
    end
    place(1)
    return count
end
local function text()
    local parts = {}
    for i = 1, 20000 do parts[#parts + 1] = ("%x"):format(i * 7919 % 65536) end
    table.sort(parts)
    local joined = table.concat(parts, " "):gsub("(%x)(%x)", "%2%1")
    local sum = 0
    for i = 1, #joined do sum = (sum * 31 + joined:byte(i)) % 2147483647 end
    return sum
end
local function wide()
    local x = 1ULL
    for i = 1, 100000 do x = x * 6364136223846793005ULL + i end
    return tostring(x)
end
print(mandelbrot(150), sieve(300000), hash(1000000), queens(8), text(), wide())
print(("%.17g %.17g %.17g"):format(math.sin(1e5), math.exp(1.1) ^ 3.3, math.fmod(1e18, 7)))
