-- A slot for a model that its caller is about to load. The caller holds the model's lock.
-- ARGV: channel, lock prefix, model, fence, most models, epoch.
-- Returns {'reserved', ''}, {'evict', victim} (the victim is now `unloading` under our fence; `end_unload` turns its
-- slot into ours), {'full', ''}, {'busy', ''} (someone is unloading it), or {'stale', ''} (Redis lost its memory).
local channel, lock_prefix, model, fence, most, epoch = unpack(ARGV)
if redis.call('GET', EPOCH) ~= epoch then return {'stale', ''} end
local mine = slot(model)
if mine then
  if mine.state == 'unloading' and is_held(mine, lock_prefix) then return {'busy', ''} end
  put(model, 'loading', fence, model)
  changed(channel)
  return {'reserved', ''}
end
local entries = redis.call('HGETALL', SLOTS)
for at = 1, #entries, 2 do
  -- The answer to an earlier attempt of ours was lost on the way.
  if entries[at + 1] == 'unloading|' .. fence .. '|' .. model then return {'evict', entries[at]} end
end
if #entries / 2 < tonumber(most) then
  put(model, 'loading', fence, model)
  changed(channel)
  return {'reserved', ''}
end
local busy = leased()
for _, name in ipairs(redis.call('ZRANGE', USED, 0, -1)) do
  local entry = slot(name)
  if entry and entry.state == 'ready' and not busy[name] and redis.call('HEXISTS', PINS, name) == 0 then
    put(name, 'unloading', fence, model)
    changed(channel)
    return {'evict', name}
  end
end
return {'full', ''}
