-- Changes an ensemble's policy, and where wanted its sums.
-- KEYS: the ensemble's state, its sums, then all else that is kept of what it did.
-- ARGV: the revision that the change was computed for ('' for any), the policy as JSON ('' to keep it), whether the
-- sums are replaced (1 or 0), the rewards that they stand for, whether all else is dropped (1 or 0), then the new sums
-- as pairs of period and numbers.
-- Returns 1, or 0 where the revision is another. A new policy or new sums begin a new generation, so that feedback
-- whose numbers were computed for the old ones is computed again.
if ARGV[1] ~= '' and (redis.call('HGET', KEYS[1], 'revision') or '0') ~= ARGV[1] then return 0 end
if ARGV[2] ~= '' then redis.call('HSET', KEYS[1], 'policy', ARGV[2]) end
if ARGV[3] == '1' then
  redis.call('DEL', KEYS[2])
  for index = 6, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[index], ARGV[index + 1]) end
  redis.call('HSET', KEYS[1], 'rewards', ARGV[4])
end
if ARGV[5] == '1' then redis.call('DEL', unpack(KEYS, 3)) end
redis.call('HINCRBY', KEYS[1], 'generation', 1)
redis.call('HINCRBY', KEYS[1], 'revision', 1)
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], 'updated_at', time[1] .. '.' .. string.format('%06d', time[2]))
return 1
