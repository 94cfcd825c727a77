-- Moves an experiment from one state to the next, once: whichever replica gets there first.
-- KEYS: its state, the ids of the active ones.
-- ARGV: id, the revision that the move was decided on, whether it ends (1 or 0), then what changes as pairs.
-- Returns 1, or 0 where the revision is another by now.
if (redis.call('HGET', KEYS[1], 'revision') or '') ~= ARGV[2] then return 0 end
for index = 4, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[index], ARGV[index + 1]) end
redis.call('HINCRBY', KEYS[1], 'revision', 1)
if ARGV[3] == '1' then redis.call('ZREM', KEYS[2], ARGV[1]) end
return 1
