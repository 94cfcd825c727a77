-- Counts the outcomes that one feedback brings, once.
-- KEYS: the feedback's mark, the experiment's moments.
-- ARGV: the feedback as text, its retention in s, how many numbers a field has, then for each metric its field and numbers.
-- Returns accepted, duplicate or conflict.
local known = redis.call('GET', KEYS[1])
if known then return known == ARGV[1] and 'duplicate' or 'conflict' end
local width = tonumber(ARGV[3])
for at = 4, #ARGV, width + 1 do
  add_sums(KEYS[2], ARGV[at], {unpack(ARGV, at + 1, at + width)})
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 'accepted'
