-- Marks a model's slot `unloading`; from then on no worker starts a new request on it.
-- ARGV: channel, lock prefix, model, fence, mode (explicit | idle | surplus), idle since.
-- Returns 'unloading', 'gone', 'busy' (someone else unloads it), 'pinned', 'leased' or 'used'.
local channel, lock_prefix, model, fence, mode, idle_since = unpack(ARGV)
local entry = slot(model)
if not entry then return 'gone' end
if entry.fence ~= fence and entry.state == 'unloading' and is_held(entry, lock_prefix) then return 'busy' end
if redis.call('HEXISTS', PINS, model) == 1 then return 'pinned' end
if mode ~= 'explicit' and entry.fence ~= fence then
  if entry.state ~= 'ready' or leased()[model] then return 'leased' end
  if mode == 'idle' and tonumber(redis.call('ZSCORE', USED, model) or '0') > tonumber(idle_since) then return 'used' end
end
put(model, 'unloading', fence, model)
changed(channel)
return 'unloading'
