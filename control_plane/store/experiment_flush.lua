-- Adds one batch of a worker's counts to an experiment's, once, however often it comes.
-- KEYS: the number of the worker's last applied batch, counts, moments, sketches, units seen.
-- ARGV: batch number, how long that number is kept in s, most units, JSON {counts, moments, sketches, units}.
-- Counts of an experiment that was deleted meanwhile are kept: nothing looks at them.
local batch, kept_s, most_units, text = unpack(ARGV)
if tonumber(redis.call('GET', KEYS[1]) or '0') >= tonumber(batch) then return 0 end
local payload = cjson.decode(text)
-- A script isn't undone where it fails: all is looked at before the first write.
for _, added in pairs(payload.moments) do
  for _, number in ipairs(added) do
    if type(number) ~= 'number' then return redis.error_reply('moments that are no numbers') end
  end
end
for field, count in pairs(payload.counts) do redis.call('HINCRBY', KEYS[2], field, count) end
for field, added in pairs(payload.moments) do add_sums(KEYS[3], field, added) end
for field, count in pairs(payload.sketches) do redis.call('HINCRBY', KEYS[4], field, count) end
for field, hashes in pairs(payload.units) do
  for _, hash in ipairs(hashes) do
    if redis.call('SCARD', KEYS[5]) >= tonumber(most_units) then
      redis.call('HINCRBY', KEYS[2], 'units_uncounted', 1)
    elseif redis.call('SADD', KEYS[5], hash) == 1 then
      redis.call('HINCRBY', KEYS[2], field, 1)
    end
  end
end
redis.call('SET', KEYS[1], batch, 'EX', kept_s)
return 1
