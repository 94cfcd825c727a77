-- All that a worker needs to know. ARGV: lock prefix.
-- Returns generation, epoch, slots, models whose holder lives, last uses, pins, leased models.
local lock_prefix = ARGV[1]
local slots = redis.call('HGETALL', SLOTS)
local held = {}
for at = 1, #slots, 2 do
  local entry = slot(slots[at])
  if entry.state ~= 'ready' and is_held(entry, lock_prefix) then held[#held + 1] = slots[at] end
end
local busy = {}
for model in pairs(leased()) do busy[#busy + 1] = model end
return {
  redis.call('GET', GENERATION) or '0',
  redis.call('GET', EPOCH) or '',
  slots,
  held,
  redis.call('ZRANGE', USED, 0, -1, 'WITHSCORES'),
  redis.call('HKEYS', PINS),
  busy,
}
