-- Moves an alias, and keeps the move. KEYS: aliases, the alias' history.
-- ARGV: field, version ('' removes it), time, move's id, channel. Returns {1 if anything moved, former version}.
local field, version, time, id, channel = unpack(ARGV)
local last = redis.call('LINDEX', KEYS[2], -1)
if last then
  local move = cjson.decode(last)
  -- The answer to an earlier attempt was lost on the way.
  if move.id == id then return {1, type(move.from) == 'string' and move.from or ''} end
end
local former = redis.call('HGET', KEYS[1], field) or ''
if former == version then return {0, former} end
if version == '' then redis.call('HDEL', KEYS[1], field) else redis.call('HSET', KEYS[1], field, version) end
local move = {id = id, time = time, from = former ~= '' and former or cjson.null, to = version ~= '' and version or cjson.null}
redis.call('RPUSH', KEYS[2], cjson.encode(move))
redis.call('PUBLISH', channel, 'aliases ')
return {1, former}
