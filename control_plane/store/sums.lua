-- Adds numbers to those that a field of a hash holds as text, in their order; a field that isn't there holds zeros.
local function add_sums(key, field, added)
  local sums = {}
  for number in string.gmatch(redis.call('HGET', key, field) or '', '%S+') do sums[#sums + 1] = tonumber(number) end
  for index, number in ipairs(added) do
    -- 17 digits give a double back; HINCRBYFLOAT would keep 17 after the point, too few for small numbers.
    sums[index] = string.format('%.17g', (sums[index] or 0) + tonumber(number))
  end
  redis.call('HSET', key, field, table.concat(sums, ' '))
end
