-- Takes over a slot whose holder is gone, or one that is missing although Triton has the model; the caller holds the
-- model's lock. ARGV: channel, lock prefix, model, fence, state (ready | loading), most models, last used, loaded at.
-- Returns 'claimed', 'busy' (its holder lives), or 'full' (no slot free).
local channel, lock_prefix, model, fence, state, most, used, loaded_at = unpack(ARGV)
local entry = slot(model)
if entry then
  if entry.fence ~= fence and entry.state ~= 'ready' and is_held(entry, lock_prefix) then return 'busy' end
elseif redis.call('HLEN', SLOTS) >= tonumber(most) then
  return 'full'
end
put(model, state, fence, model)
redis.call('ZADD', USED, 'GT', used, model)
redis.call('HSETNX', LOADED_AT, model, loaded_at)
changed(channel)
return 'claimed'
