-- KEYS: lock. ARGV: its value, channel, name.
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
  redis.call('PUBLISH', ARGV[2], 'unlocked ' .. ARGV[3])
  return 1
end
return 0
