-- The model has left Triton: its slot is free, or its successor's.
-- ARGV: channel, model, fence, counter ('' for none), successor ('' for none). Returns 1, or 0 when it isn't ours.
local channel, model, fence, counter, successor = unpack(ARGV)
local entry = slot(model)
if entry and entry.state == 'unloading' and entry.fence == fence then
  drop(model)
  if counter ~= '' then redis.call('HINCRBY', STATS, counter, 1) end
  if successor ~= '' then put(successor, 'loading', fence, successor) end
  changed(channel)
  return 1
end
if successor ~= '' then
  local heir = slot(successor)
  if heir and heir.fence == fence then return 1 end
end
return 0
