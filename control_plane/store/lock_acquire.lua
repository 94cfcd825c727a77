-- KEYS: lock, fence counter. ARGV: token, ttl in ms. Returns the fence, or 0 while someone else holds the lock.
local held = redis.call('GET', KEYS[1])
if held then
  local token, fence = string.match(held, '^(.*):(%d+)$')
  -- Our own: the answer to an earlier attempt was lost on the way.
  if token == ARGV[1] then return tonumber(fence) end
  return 0
end
if redis.call('EXISTS', KEYS[2]) == 0 then
  -- Starts from the clock, so that fences go on rising after Redis lost everything.
  redis.call('SET', KEYS[2], redis.call('TIME')[1] .. '000')
end
local fence = redis.call('INCR', KEYS[2])
redis.call('SET', KEYS[1], ARGV[1] .. ':' .. string.format('%.0f', fence), 'PX', ARGV[2])
return fence
