-- Creates an experiment, once.
-- KEYS: its definition, its state, the ids of all, the ids of the active ones.
-- ARGV: id, definition as JSON, wall time of its creation, then its state as pairs. Returns 1, or 0 where the id is taken.
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
for index = 4, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[index], ARGV[index + 1]) end
redis.call('HSET', KEYS[2], 'revision', 1)
redis.call('ZADD', KEYS[3], ARGV[3], ARGV[1])
redis.call('ZADD', KEYS[4], ARGV[3], ARGV[1])
return 1
