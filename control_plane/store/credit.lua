-- Counts the feedback to one row of one request, once.
-- KEYS: the row's feedback, the ensemble's state, its sums, its log.
-- ARGV: the feedback as text, its retention in s, the generation that the numbers were computed for, the sums' period,
-- the log's length, the log's entry, then what to add to the period's sums (nothing where there is no reward).
-- Returns accepted, duplicate (the same feedback is there), conflict (another is), or stale (another generation).
local known = redis.call('GET', KEYS[1])
if known then return known == ARGV[1] and 'duplicate' or 'conflict' end
if #ARGV > 6 then
  if (redis.call('HGET', KEYS[2], 'generation') or '0') ~= ARGV[3] then return 'stale' end
  add_sums(KEYS[3], ARGV[4], {unpack(ARGV, 7)})
  redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[5], '*', 'e', ARGV[6])
  redis.call('HINCRBY', KEYS[2], 'revision', 1)
  redis.call('HINCRBY', KEYS[2], 'rewards', 1)
  local time = redis.call('TIME')
  redis.call('HSET', KEYS[2], 'updated_at', time[1] .. '.' .. string.format('%06d', time[2]))
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 'accepted'
