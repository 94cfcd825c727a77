-- KEYS[11]: the owners of the model's pin. ARGV: channel, model, owner, 1 to pin or 0 to unpin.
-- Returns how many owners there are now.
local channel, model, owner, on = unpack(ARGV)
if on == '1' then redis.call('SADD', KEYS[11], owner) else redis.call('SREM', KEYS[11], owner) end
local owners = redis.call('SCARD', KEYS[11])
if owners > 0 then redis.call('HSET', PINS, model, owners) else redis.call('HDEL', PINS, model) end
return owners
