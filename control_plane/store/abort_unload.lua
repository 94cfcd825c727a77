-- The unload did not happen: the model serves on. ARGV: channel, model, fence. Returns 1, or 0 when it isn't ours.
local channel, model, fence = unpack(ARGV)
local entry = slot(model)
if not entry or entry.state ~= 'unloading' or entry.fence ~= fence then return 0 end
put(model, 'ready', fence, model)
changed(channel)
return 1
