-- The model is loaded. ARGV: channel, model, fence, last used, loaded at, worker, lease in s (0: none).
-- Returns 1, or 0 when the slot belongs to a later operation.
local channel, model, fence, used, loaded_at, worker, lease = unpack(ARGV)
local mine = slot(model)
if not mine or mine.fence ~= fence then return 0 end
if mine.state ~= 'ready' then redis.call('HSET', LOADED_AT, model, loaded_at) end
put(model, 'ready', fence, model)
redis.call('ZADD', USED, 'GT', used, model)
if tonumber(lease) > 0 then redis.call('ZADD', LEASES, now() + tonumber(lease), model .. '|' .. worker) end
changed(channel)
return 1
