-- KEYS: lock. ARGV: its value, ttl in ms. Returns 1 while the lock is still ours.
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0
